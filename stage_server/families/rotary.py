"""Rotary positions from a model's configuration."""

from typing import Any

import torch

from stage_server.families.spec import RotarySpec


def rotary_of(config: Any, layer_type: str | None = None, *, is_partial: bool = False) -> RotarySpec:
    """The rotation that a configuration asks for; scaled variants are computed by transformers.

    The unscaled one is written out, because the modules of transformers that have it take seconds to import.

    Args:
        config: Of a family with rotary positions.
        layer_type: Which of its rotations, where layers have different ones.
        is_partial: Whether the family heeds `partial_rotary_factor`.
    """
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    if parameters["rope_type"] != "default":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415 most models do without

        frequencies, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](
            config.as_transformers(), layer_type=layer_type
        )
        return RotarySpec(frequencies.float(), float(scale))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_rotated = int(head_dim * parameters.get("partial_rotary_factor", 1.0)) if is_partial else head_dim
    exponents = torch.arange(0, num_rotated, 2, dtype=torch.float32) / num_rotated
    return RotarySpec(1.0 / parameters["rope_theta"] ** exponents)
