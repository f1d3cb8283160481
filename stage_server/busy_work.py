"""What a device computes while another one of its host is measured."""

from collections.abc import Iterator
from itertools import count

import torch

from stage_server.device import ComputeDevice
from stage_server.layer_stack import LayerStack
from stage_server.loader import ModelLoader
from stage_server.positions import PositionEncoding
from stage_server.sample_run import EXACT

#: A decode step of a few sequences at full precision: reading weights takes most of it, but not all. No scheme of a run
#: takes much more of the memory that devices share, and weights of this one need not be rounded first.
_NUM_SEQUENCES, _PAST_TOKENS = 4, 48


def busy_work(loader: ModelLoader, device: ComputeDevice) -> Iterator[int]:
    """Decodes without end; yields how often it has been through its layers.

    Args:
        loader: Of the model.
        device: Where to compute.
    """
    stack = _stack(loader, device)
    past_tokens = min(_PAST_TOKENS, loader.spec.max_positions - 1)
    cache = stack.caches(_NUM_SEQUENCES, past_tokens + 1, is_int8=False)
    encoding = PositionEncoding(loader.spec, device.torch_device, device.compute_dtype)
    positions = encoding.at(stack.layout(_NUM_SEQUENCES, 1, past_tokens))
    shape = (_NUM_SEQUENCES, loader.spec.hidden_size)
    hidden = torch.ones(shape, dtype=device.compute_dtype, device=device.torch_device)
    runs = stack.runs(len(stack.layers), cache)
    for num_done in count(1):
        next(runs).forward(hidden, positions)
        yield num_done


def _stack(loader: ModelLoader, device: ComputeDevice) -> LayerStack:
    source = loader.source.layer(0).as_floats()  # not needed any longer than that
    return LayerStack(lambda: loader.build_layer(source, EXACT), loader.spec, device)
