"""What a deployment of new weights computes before its first frame, while other stages still load.

Weights are touched, GPU kernels are compiled and code is read from disk on first use: as little of it as can be is to
happen in frames, for which all stages wait.
"""

import torch

from stage_server.device import ComputeDevice
from stage_server.layer_run import LayerRun
from stage_server.layout import BatchLayout
from stage_server.model_slice import ModelSlice

#: Rows of the prefill micro-batch: enough for the kernels of many rows, and far fewer than frames have.
_PREFILL_ROWS = 32


def warm_up(weights: ModelSlice, run: LayerRun, hidden_size: int, max_rows: int, device: ComputeDevice) -> None:
    """Takes made-up tokens of one sequence through a slice in both phases; they are left in the first slot.

    Args:
        weights: The slice.
        run: Of its layers.
        hidden_size: Elements of the states between layers.
        max_rows: Rows of a micro-batch, and tokens that the first slot has room for, at most.
        device: Where to compute.
    """
    for num_rows in (min(_PREFILL_ROWS, max_rows), 1):
        layout = BatchLayout((0,), (0,), (num_rows,), device.torch_device)
        hidden = weights.hidden_states(_inputs(weights, num_rows, hidden_size, device), layout, run)
        if weights.head is not None:
            weights.head.most_likely(hidden[-1:])


def _inputs(weights: ModelSlice, num_rows: int, hidden_size: int, device: ComputeDevice) -> torch.Tensor:
    """What the slice takes: token ids on the first stage, hidden states elsewhere."""
    if weights.embedding is not None:
        return torch.zeros(num_rows, dtype=torch.int32, device=device.torch_device)
    return torch.ones(num_rows, hidden_size, dtype=device.compute_dtype, device=device.torch_device)
