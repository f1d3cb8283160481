"""Tensors in the payloads of frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmpq.device import Phase
from llmpq.frame_chunks import FrameAssembler, messages_of
from llmpq.frames import DataType, Frame
from stage_server.tensors import payload_of, tensor_of

CPU = torch.device("cpu")


def sent(tensor: torch.Tensor, *, is_int8: bool = False) -> tuple[Frame, Frame]:
    """A frame with a tensor of hidden states, before and after its way."""
    data_type, dimensions, payload = payload_of(tensor, is_int8=is_int8)
    frame = Frame("d", 1, Phase.PREFILL, [0], [0], [len(tensor)], data_type, dimensions, payload)
    assembler = FrameAssembler()
    (received,) = filter(None, map(assembler.take, messages_of(frame)))
    return frame, received


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Every 64 elements of a row to the nearest of 255 levels, as the contract says it."""
    rows = []
    for row in tensor.float():
        groups = row.split(64)
        scales = [group.abs().max() / 127 for group in groups]
        rows.append(torch.cat([torch.round(g / s) * s if s else g for g, s in zip(groups, scales, strict=True)]))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [3, 5000])
def test_hidden_states_arrive_as_they_are(dtype: torch.dtype, num_rows: int) -> None:
    """In one message or in several, a tensor comes out bit by bit, in memory that may be written to."""
    tensor = torch.randn(num_rows, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    arrived = tensor_of(sent(tensor)[1])
    assert torch.equal(arrived, tensor)
    arrived += 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 64), (7, 200), (3, 1), (9000, 130)])
def test_int8_rounds_each_group_to_its_own_scale(dtype: torch.dtype, num_rows: int, width: int) -> None:
    """Each group of 64 is rounded to 255 levels of its largest magnitude, whatever stands beside it; zeros stay."""
    tensor = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    tensor[0, width // 2] = 3000.0
    tensor[-1] = 0.0
    frame, received = sent(tensor, is_int8=True)
    assert received.data_type is DataType.INT8
    assert len(received.payload) == num_rows * (width + 4 * -(-width // 64))
    torch.testing.assert_close(tensor_of(received), rounded(tensor), rtol=1e-6, atol=0)
    assert replace(received, payload=b"") == replace(frame, payload=b"")


def test_int8_is_read_by_the_words_of_the_contract() -> None:
    """A row is its integers, then its scales, little-endian; an element is its integer times its scale."""
    tensor = torch.linspace(-3, 5, 70)[None]
    payload = bytes(payload_of(tensor, is_int8=True)[2])
    codes, scales = np.frombuffer(payload[:70], "i1"), np.frombuffer(payload[70:], "<f4")
    assert codes.min() == -127 or codes.max() == 127
    np.testing.assert_allclose(codes * scales.repeat(64)[:70], tensor[0].numpy(), atol=float(scales.max()) / 2)
