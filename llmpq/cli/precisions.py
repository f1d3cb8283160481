"""Precisions that the user gives layer by layer, as `w8*15,w4*15` or as a plan that was made before."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from llmpq.errors import InvalidInputError
from llmpq.messages import from_fields
from llmpq.plan import Plan, PlanOptions
from llmpq.schemes import SCHEMES

#: `w8*15` or `w8`.
_RUN = re.compile(r"(\w+)(?:\*(\d+))?")


def given_precisions(value: str) -> PlanOptions:
    """What `--precisions` asks for: each layer's scheme, and of a plan also its group size, rounding and cache.

    Args:
        value: Runs of schemes, `w8*15,w4*15`; or the name of a .json file that has a plan.

    Raises:
        typer.BadParameter: It is neither, or the file has no plan, or several, or one of mixed group sizes.
    """
    if value.endswith(".json"):
        return _of_plan(_plan_in(Path(value)))
    return PlanOptions(layer_schemes=tuple(scheme for run in value.split(",") for scheme in _repeated(run.strip())))


def _repeated(run: str) -> tuple[str, ...]:
    found = _RUN.fullmatch(run)
    if not found or found[1] not in SCHEMES or found[2] == "0":
        known = ", ".join(SCHEMES)
        raise typer.BadParameter(f"'{run}' is not SCHEME or SCHEME*LAYERS, with a scheme of {known}; nor a .json file.")
    return (found[1],) * int(found[2] or 1)


def _plan_in(path: Path) -> Plan:
    """The plan in a document of `llmpq plan --json` or `llmpq status BATCH --json`, or the plan itself."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
        return from_fields(Plan, _sole_plan(document, path))
    except (OSError, ValueError, InvalidInputError) as error:
        raise typer.BadParameter(f"{path}: {error}") from error


def _sole_plan(document: Any, path: Path) -> Any:
    """Where several strategies planned, it is for the user to say whose plan is meant."""
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{path} has no plan.")
    if "plans" not in document:
        return document.get("plan", document)
    plans = [entry["plan"] for entry in document["plans"] if entry.get("plan")]
    if len(plans) != 1:
        raise typer.BadParameter(f"{path} has {len(plans)} plans; keep the one that is to be served.")
    return plans[0]


def _of_plan(plan: Plan) -> PlanOptions:
    layers = [layer for stage in plan.stages for layer in stage.layers]
    group_sizes = sorted({layer.group_size for layer in layers if SCHEMES[layer.scheme].is_grouped})
    if len(group_sizes) > 1:
        raise typer.BadParameter(f"The plan has layers in groups of {group_sizes}; one size can be served at a time.")
    options = PlanOptions(
        layer_schemes=tuple(layer.scheme for layer in layers),
        rounding=plan.rounding,
        has_int8_kv_cache=plan.has_int8_kv_cache,
        has_int8_activations=plan.has_int8_activations,
    )
    return replace(options, group_size=group_sizes[0]) if group_sizes else options
