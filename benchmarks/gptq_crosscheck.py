"""Our GPTQ beside gptqmodel's on the same weights and inputs: what either loses at the outputs.

    python3.11 -m venv build/gptqmodel && build/gptqmodel/bin/pip install gptqmodel
    build/gptqmodel/bin/pip install --no-deps . && build/gptqmodel/bin/pip install grpcio protobuf structlog
    build/gptqmodel/bin/python benchmarks/gptq_crosscheck.py

gptqmodel has an environment of its own because it asks for a newer torch than llmpq is tested with. The loss is the
mean squared error of the outputs on the inputs that both were given, relative to rounding to the nearest. Both have a
zero point per group and take columns with the largest inputs first. Exit code 1: ours loses over 5 % more anywhere.
"""

import sys

import torch
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ

from llmpq.plan import LayerPrecision, Rounding
from quantizer.input_statistics import InputStatistics
from quantizer.methods import round_weight

_OUTPUTS, _INPUTS, _ROWS = 256, 512, 4096
_MARGIN = 1.05


def main() -> int:
    """Prints a line for each precision."""
    torch.manual_seed(0)
    mixing = torch.randn(_INPUTS, _INPUTS) / _INPUTS**0.5
    inputs = torch.randn(_ROWS, _INPUTS) @ mixing * torch.rand(_INPUTS).add(0.1)
    weight = torch.randn(_OUTPUTS, _INPUTS) * 0.02
    is_close = True
    print(f"{'':12} {'nearest':>10} {'gptqmodel':>10} {'llmpq':>10}   relative to nearest")
    for bits in (4, 3):
        for group_size in (64, 128):
            precision = LayerPrecision(f"w{bits}", group_size)
            nearest = _loss(round_weight(weight, precision).dequantized(), weight, inputs)
            theirs = _loss(_by_gptqmodel(weight, inputs, bits, group_size), weight, inputs) / nearest
            ours = _loss(_by_llmpq(weight, inputs, precision), weight, inputs) / nearest
            print(f"w{bits} group {group_size:<4} {1:10.3f} {theirs:10.3f} {ours:10.3f}")
            is_close &= ours <= theirs * _MARGIN
    return 0 if is_close else 1


def _by_llmpq(weight: torch.Tensor, inputs: torch.Tensor, precision: LayerPrecision) -> torch.Tensor:
    statistics = InputStatistics()
    statistics.update(inputs)
    return round_weight(weight, precision, Rounding("gptq"), statistics).dequantized()


def _by_gptqmodel(weight: torch.Tensor, inputs: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    settings = QuantizeConfig(bits=bits, group_size=group_size, sym=False, desc_act=True, act_group_aware=False)
    method = GPTQ(layer, settings)
    method.quantizer.configure(perchannel=True)
    method.add_batch(inputs[None], layer(inputs)[None], 0)
    rounded: torch.Tensor = method.quantize()[0]
    return rounded.float()


def _loss(rounded: torch.Tensor, weight: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((rounded - weight) @ inputs.T).square().mean())


if __name__ == "__main__":
    sys.exit(main())
