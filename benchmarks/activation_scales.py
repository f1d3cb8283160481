"""What it buys that w8a8 rotates activations and rounds them with a scale for each group of 64, not one a token.

    python benchmarks/activation_scales.py --model build/models/SmolLM2-135M-Instruct.Q4_1.gguf \
        --text tests/data/wikitext/wiki.test.head.raw

Perplexity, and the mean KL divergence of predictions from those of w16, with weights of 8 bits in every layer; how
activations are rounded differs, and for the sake of rotation the weights with them. Needs the native kernels, which are
those that have a scale for each group.
"""

import argparse
import math
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from mixed_model import MixedModel, through_all

from llmpq.plan import NEAREST, LayerPrecision, Rounding
from quantizer.dynamic_int8 import DynamicInt8Linear
from quantizer.rounded import RowRounded
from stage_server.decoder_layer import DecoderLayer, LayerLinears
from stage_server.layer_rounding import rounded_layer
from stage_server.source_linears import SourceLinear

W8A8 = LayerPrecision("w8a8")
UNROTATED = Rounding(is_unrotated=True)
ROLES = tuple(field.name for field in fields(LayerLinears))
#: By what is told of them, the linears whose activations have one scale a token; none are rotated.
WITH_ONE_SCALE: Mapping[str, Collection[str]] = {
    "not rotated, a scale for each group": (),
    "not rotated, one scale a token in down_proj": ("ffn_out",),
    "not rotated, one scale a token in all others": tuple(role for role in ROLES if role != "ffn_out"),
    "not rotated, one scale a token": ROLES,
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
    print("| activations | KL divergence, 1e-3 nats | perplexity | beside w16 |\n|---|---|---|---|")
    run = model.run(settings.tokens)
    exact = through_all(run, model.at("w16"))
    perplexity_of_w16 = math.exp(model.negative_log_likelihood(run, exact))
    print(f"| w16 | 0 | {perplexity_of_w16:.3f} | |", flush=True)
    rows = {"w8, as they are": model.at("w8"), "w8a8": model.at("w8a8")} | {
        name: [unrotated(model, layer, roles) for layer in range(model.num_layers)]
        for name, roles in WITH_ONE_SCALE.items()
    }
    for name, layers in rows.items():
        states = through_all(run, layers)
        perplexity = math.exp(model.negative_log_likelihood(run, states))
        divergence = 1e3 * model.divergence(exact, states)
        rise = perplexity / perplexity_of_w16 - 1
        print(f"| {name} | {divergence:.2f} | {perplexity:.3f} | {rise:+.2%} |", flush=True)


def unrotated(model: MixedModel, index: int, with_one_scale: Collection[str]) -> DecoderLayer:
    """A layer at w8a8 without rotation, some of its linears with one activation scale a token."""
    source = model.loader.source.layer(index).as_floats()
    rounded = rounded_layer(model.loader, source, W8A8, UNROTATED)
    layer = model.loader.build_layer(rounded, W8A8)
    linears = {role: _one_scale(linear) for role, linear in rounded.linears.items() if role in with_one_scale}
    layer.linears = replace(layer.linears, **linears)
    return layer


def _one_scale(linear: SourceLinear) -> DynamicInt8Linear:
    if not isinstance(linear.stored, RowRounded):
        raise TypeError("weights of 8 bits have a scale for each row")
    return DynamicInt8Linear(linear.stored, linear.bias)


if __name__ == "__main__":
    main()
