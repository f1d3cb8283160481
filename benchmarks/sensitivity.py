"""How well each indicator ranks layers by the damage of quantizing them, and what mixed precisions by it are worth.

    python benchmarks/sensitivity.py --model build/models/SmolLM2-135M-Instruct.Q4_1.gguf \
        --text tests/data/wikitext/wiki.test.head.raw --output build/sensitivity.json

Damage is the increase of a text's mean negative log-likelihood with one layer alone quantized; the text is not that of
calibration. A mixed assignment stores the half of the layers that matters least at w4 and the others at w8; it is
compared with its reverse and with halves drawn at random. What has been measured is kept in the output, so that a run
can be taken up again.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from mixed_model import LayerDamage, MixedModel
from notebook import Notebook
from scipy.stats import kendalltau, spearmanr

from coordinator.calibration import calibration_samples
from coordinator.omega import random_ratings
from llmpq.calibration_text import NUM_RATING_SAMPLES
from llmpq.model import ModelFiles
from llmpq.plan import INDICATORS, LayerSensitivity, Rounding
from llmpq.rating import RatingRequest
from llmpq.stage_load import TokenSequence
from stage_server.sample_run import Samples
from stage_server.sensitivity import rate_layers

#: Layers that are to be told from the others first of all.
_TOP = 5
_RANDOM_DRAWS = 5
_MEASURED = tuple(indicator for indicator in INDICATORS if indicator != "random")


def main() -> None:
    """Measures, and prints the tables as JSON."""
    settings = _settings()
    torch.set_grad_enabled(False)
    kept = {key: str(value) for key, value in vars(settings).items() if key != "output"}
    notebook = Notebook(settings.output, kept)
    samples = tuple(map(tuple, calibration_samples(settings.model)))
    model = MixedModel(
        settings.model,
        settings.text,
        window=settings.window,
        group_size=settings.group,
        rounding=Rounding(settings.rounding),
        samples=samples,
    )
    for indicator in INDICATORS:
        notebook.once(
            f"ratings {indicator}", partial(ratings, model, settings, indicator, samples[:NUM_RATING_SAMPLES])
        )
    for name, schemes in assignments(notebook.results, model.num_layers).items():
        notebook.once(f"mixed {name}", partial(mixed_perplexity, model, schemes, settings.mixed_tokens))
    damage = cache(partial(LayerDamage, model, settings.damage_tokens))

    def rise(layer: int, scheme: str) -> float:
        return damage().of(layer, scheme)

    for scheme in settings.schemes:
        for layer in range(model.num_layers):
            notebook.once(f"damage {scheme} {layer}", partial(rise, layer, scheme))
    json.dump(report(notebook.results, settings.schemes, model.num_layers), sys.stdout, indent=2)


def ratings(model: MixedModel, settings: argparse.Namespace, indicator: str, samples: Samples) -> dict[str, Any]:
    """The omegas of all layers by scheme, not normalized, and the seconds that they took."""
    started = time.monotonic()
    schemes = ("w8", *settings.schemes)
    entries: Sequence[LayerSensitivity]
    if indicator == "random":
        entries = random_ratings(model.num_layers, schemes, ModelFiles.locate(settings.model).fingerprint)
    else:
        sequences = tuple(map(TokenSequence, samples))
        rounding = Rounding(settings.rounding)
        request = RatingRequest(settings.model, schemes, settings.group, sequences, indicator, rounding)
        progress = rate_layers(model.loader, model.device, request)
        entries = [entry for step in progress for entry in step.sensitivities]
    by_layer = sorted(entries, key=lambda entry: entry.layer)
    omega = {scheme: [entry.omega for entry in by_layer if entry.scheme == scheme] for scheme in schemes}
    return {"seconds": time.monotonic() - started, "omega": omega}


def mixed_perplexity(model: MixedModel, schemes: Sequence[str], num_tokens: int) -> float:
    """Perplexity with each layer at its scheme."""
    return model.perplexity(model.mixed(schemes), num_tokens)


def assignments(results: Mapping[str, Any], num_layers: int) -> dict[str, list[str]]:
    """Halves at w4 and w8: by each indicator, in its reverse, and drawn at random."""
    half = num_layers // 2
    named: dict[str, list[str]] = {}
    for indicator in _MEASURED:
        omega = results[f"ratings {indicator}"]["omega"]
        gains = [at_w4 - at_w8 for at_w4, at_w8 in zip(omega["w4"], omega["w8"], strict=True)]
        order = sorted(range(num_layers), key=gains.__getitem__)
        named[f"by {indicator}"] = _at_w4(order[:half], num_layers)
        named[f"by {indicator} reversed"] = _at_w4(order[num_layers - half :], num_layers)
    for draw in range(_RANDOM_DRAWS):
        chosen = random.Random(draw).sample(range(num_layers), half)  # noqa: S311 nothing is kept secret by it
        named[f"random draw {draw}"] = _at_w4(chosen, num_layers)
    return named


def report(results: Mapping[str, Any], schemes: Sequence[str], num_layers: int) -> dict[str, Any]:
    """How well indicators rank layers, what they cost in seconds, and the perplexities of the assignments."""
    rankings = {
        f"{indicator} {scheme}": ranking(
            results[f"ratings {indicator}"]["omega"][scheme],
            [results[f"damage {scheme} {layer}"] for layer in range(num_layers)],
        )
        for scheme in schemes
        for indicator in INDICATORS
    }
    perplexities = {name: value for name, value in results.items() if name.startswith("mixed ")}
    draws = [value for name, value in perplexities.items() if name.startswith("mixed random draw")]
    return {
        "seconds": {indicator: results[f"ratings {indicator}"]["seconds"] for indicator in INDICATORS},
        "rankings": rankings,
        "perplexities": perplexities | {"mean of random draws": mean(draws)},
    }


def ranking(omegas: Sequence[float], damage: Sequence[float]) -> dict[str, float]:
    """How alike two orders of the layers are."""
    worst, rated_worst = (
        set(sorted(range(len(values)), key=values.__getitem__)[-_TOP:]) for values in (damage, omegas)
    )
    return {
        "spearman": float(spearmanr(omegas, damage)[0]),
        "kendall": float(kendalltau(omegas, damage)[0]),
        "share_of_top_5": len(worst & rated_worst) / _TOP,
    }


def _at_w4(chosen: Sequence[int], num_layers: int) -> list[str]:
    return ["w4" if layer in chosen else "w8" for layer in range(num_layers)]


def _settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--damage-tokens", type=int, default=4096)
    parser.add_argument("--mixed-tokens", type=int, default=20_480)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--schemes", nargs="+", default=["w4", "w3"])
    parser.add_argument("--rounding", default="nearest")
    parser.add_argument("--group", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()
