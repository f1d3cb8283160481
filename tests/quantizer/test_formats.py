"""Rounded weights keep every code, scale and zero point on their way to disk and back."""

from collections.abc import Mapping

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from llmpq.formats import Layout, StoredLinear
from llmpq.plan import LayerPrecision, Rounding
from llmpq.schemes import SCHEMES
from quantizer.formats import compressed_tensors, gptq
from quantizer.formats.words import pack_words, unpack_words
from quantizer.methods import round_weight
from quantizer.rounded import GroupRounded, RowRounded

OUT, IN = 40, 128
STORED = [
    StoredLinear(Layout.INT8, LayerPrecision("w8a8")),
    StoredLinear(Layout.PACKED, LayerPrecision("w8")),
    *(
        StoredLinear(Layout.PACKED, LayerPrecision(scheme, group_size), is_symmetric)
        for scheme in ("w4", "w3")
        for group_size in (0, 32, 64, 128)
        for is_symmetric in (False, True)
    ),
]


def rounded(stored: StoredLinear) -> RowRounded | GroupRounded:
    """A random weight at the precision of `stored`."""
    is_symmetric = stored.is_symmetric and SCHEMES[stored.precision.scheme].is_grouped
    rounding = Rounding(is_symmetric=is_symmetric, is_unrotated=True)
    weight = round_weight(torch.randn(OUT, IN), stored.precision, rounding)
    assert not hasattr(weight, "weight")
    return weight


def library_scheme(stored: StoredLinear) -> QuantizationScheme:
    """The same in the words of compressed-tensors."""
    grouped = stored.precision.group_size > 0
    weights = QuantizationArgs(
        num_bits=SCHEMES[stored.precision.scheme].weight_bits,
        symmetric=stored.is_symmetric,
        strategy="group" if grouped else "channel",
        group_size=stored.precision.group_size if grouped else None,
    )
    return QuantizationScheme(targets=["Linear"], weights=weights, format=stored.layout.value)


def library_weight(tensors: Mapping[str, torch.Tensor], stored: StoredLinear) -> torch.Tensor:
    """What compressed-tensors makes of a linear's tensors, computed in float32."""
    tensors = dict(tensors) | {"weight_scale": tensors["weight_scale"].float()}
    compressor = BaseCompressor.get_value_from_registry(stored.layout.value)
    return compressor.decompress(tensors, library_scheme(stored))["weight"]


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("num_values", [1, 31, 32, 33, 75, 128])
def test_words_are_those_of_the_library(bits: int, num_values: int) -> None:
    """Packed words equal those of compressed-tensors, whatever is over in the last one, and unpack to the values."""
    values = torch.randint(0, 2**bits, (5, num_values), dtype=torch.uint8)

    words = pack_words(values, bits)

    assert torch.equal(words, pack_to_int32((values.int() - 2 ** (bits - 1)).to(torch.int8), bits))
    assert torch.equal(unpack_words(words, bits, num_values), values)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_compressed_tensors_round_trip_is_exact(stored: StoredLinear) -> None:
    """Each precision comes back with equal codes, scales and zero points, in tensors of the promised shapes."""
    weight = rounded(stored)

    tensors = compressed_tensors.to_tensors(weight, stored)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name != "weight_shape"}
    back = compressed_tensors.from_tensors(tensors, stored, IN)

    assert shapes == compressed_tensors.tensor_shapes(stored, OUT, IN)
    assert type(back) is type(weight)
    for name, value in vars(weight).items():
        same = (
            torch.equal(value, getattr(back, name)) if isinstance(value, torch.Tensor) else value == getattr(back, name)
        )
        assert same, name


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_the_library_makes_the_same_weights_of_our_tensors(stored: StoredLinear) -> None:
    """compressed-tensors decompresses what is written to exactly the weights that are served."""
    weight = rounded(stored)

    assert torch.equal(library_weight(compressed_tensors.to_tensors(weight, stored), stored), weight.dequantized())


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_weights_that_the_library_compressed_are_read_as_it_reads_them(stored: StoredLinear) -> None:
    """Codes, also the -128 that llmpq itself never makes, and zero points of the library come to its own weights."""
    num_groups = IN // (stored.precision.group_size or IN)
    half = 2 ** (SCHEMES[stored.precision.scheme].weight_bits - 1)
    state = {
        "weight": torch.randn(OUT, IN) * 2,
        "weight_scale": (torch.rand(OUT, num_groups) / half + 0.01).half().float(),
        "weight_zero_point": torch.randint(-half, half, (OUT, num_groups)).to(torch.int8),
    }
    compressor = BaseCompressor.get_value_from_registry(stored.layout.value)
    tensors = compressor.compress(state, library_scheme(stored))

    weight = compressed_tensors.from_tensors(tensors, stored, IN)

    assert weight.codes.min() == (-half if isinstance(weight, RowRounded) else 0)
    assert torch.equal(weight.dequantized(), library_weight(tensors, stored))


def gptq_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Each row as one large number, cut into words of 32 bits: GPTQ's storage by its definition."""
    num_words = -(-values.shape[1] * bits // 32)
    rows = [sum(value << bits * i for i, value in enumerate(row)) for row in values.tolist()]
    words = [[row >> 32 * word & 0xFFFFFFFF for word in range(num_words)] for row in rows]
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize("layout", [Layout.GPTQ_1, Layout.GPTQ_2])
@pytest.mark.parametrize("precision", [("w8", 0), ("w4", 64), ("w4", 0), ("w3", 32)], ids=str)
def test_gptq_weights_are_those_that_were_stored(layout: Layout, precision: tuple[str, int]) -> None:
    """(code - zero) * scale of every weight, zero points of 0 to the largest among them, in either version."""
    scheme, group_size = precision
    bits = SCHEMES[scheme].weight_bits
    num_groups = IN // (group_size or IN)
    codes = torch.randint(0, 2**bits, (OUT, IN))
    zeros = torch.randint(0, 2**bits, (OUT, num_groups))
    zeros[0], zeros[1] = 0, 2**bits - 1
    scales = torch.rand(OUT, num_groups).half()
    kept = (zeros - (1 if layout == Layout.GPTQ_1 else 0)) % 2**bits
    tensors = {
        "qweight": gptq_words(codes, bits).t(),
        "qzeros": gptq_words(kept.t(), bits),
        "scales": scales.t(),
    }
    stored = StoredLinear(layout, LayerPrecision(scheme, group_size), is_symmetric=False)

    weight = gptq.from_tensors(tensors, stored, IN)

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes | {"g_idx": (IN,)} == gptq.tensor_shapes(stored, OUT, IN)
    spread = [group.repeat_interleave(IN // num_groups, dim=1) for group in (zeros, scales.float())]
    assert torch.equal(weight.dequantized(), (codes - spread[0]) * spread[1])
