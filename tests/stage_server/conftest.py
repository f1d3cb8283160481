"""Models for the stage server's tests."""

from pathlib import Path

import pytest
import torch
from parity_models import MODELS, SaveModel
from transformers import PreTrainedModel


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Makes a model of MODELS, saves it, and returns its directory with the model itself."""

    def save(name: str) -> tuple[str, PreTrainedModel]:
        torch.manual_seed(7)
        model = MODELS[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                # Random weights are too alike for a wrong result to show; biases start at zero.
                parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half().float())
        model.eval()
        model.save_pretrained(tmp_path / name)
        return str(tmp_path / name), model

    return save
