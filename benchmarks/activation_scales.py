"""What it buys that w8a8 rounds activations with a scale for each group of 64, rather than one scale a token.

    python benchmarks/activation_scales.py --model build/models/SmolLM2-135M-Instruct.Q4_1.gguf \
        --text tests/data/wikitext/wiki.test.head.raw

Perplexity with the same weights of 8 bits in every layer; only the activations of some linears differ. Needs the native
kernels, which are those that have a scale for each group.
"""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from mixed_model import MixedModel

from llmpq.plan import NEAREST, LayerPrecision
from quantizer.dynamic_int8 import DynamicInt8Linear
from quantizer.rounded import RowRounded
from stage_server.decoder_layer import DecoderLayer, LayerLinears
from stage_server.loader import ModelLoader
from stage_server.source_linears import SourceLinear

W8A8 = LayerPrecision("w8a8")
ROLES = tuple(field.name for field in fields(LayerLinears))
#: By what is told of them, the linears whose activations have one scale a token.
WITH_ONE_SCALE: Mapping[str, Collection[str]] = {
    "w8a8, a scale for each group": (),
    "w8a8, one scale a token in down_proj": ("ffn_out",),
    "w8a8, one scale a token in all others": tuple(role for role in ROLES if role != "ffn_out"),
    "w8a8, one scale a token": ROLES,
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20_480)
    parser.add_argument("--window", type=int, default=1024)
    settings = parser.parse_args()
    torch.set_grad_enabled(False)
    model = MixedModel(
        settings.model, settings.text, window=settings.window, group_size=64, rounding=NEAREST, samples=()
    )
    print("| activations | perplexity | beside w16 |\n|---|---|---|")
    exact = model.perplexity(model.at("w16"), settings.tokens)
    print(f"| w16 | {exact:.3f} | |", flush=True)
    rows = {"w8, activations as they are": model.at("w8")} | {
        name: [with_one_scale(model, layer, roles) for layer in range(model.num_layers)]
        for name, roles in WITH_ONE_SCALE.items()
    }
    for name, layers in rows.items():
        perplexity = model.perplexity(layers, settings.tokens)
        print(f"| {name} | {perplexity:.3f} | {perplexity / exact - 1:+.2%} |", flush=True)


def with_one_scale(model: MixedModel, index: int, roles: Collection[str]) -> DecoderLayer:
    """A layer at w8a8, some of its linears with one activation scale a token."""
    source = model.loader.source.layer(index).as_floats()
    layer = model.loader.build_layer(source, W8A8)
    layer.linears = replace(
        layer.linears,
        **{role: _one_scale(model.loader, linear) for role, linear in source.linears.items() if role in roles},
    )
    return layer


def _one_scale(loader: ModelLoader, linear: SourceLinear) -> DynamicInt8Linear:
    rounded = loader.round_linear(linear, W8A8)
    if not isinstance(rounded, RowRounded):
        raise TypeError("weights of 8 bits have a scale for each row")
    return DynamicInt8Linear(rounded, linear.bias)


if __name__ == "__main__":
    main()
