"""Options that several commands share."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from llmpq.cli.precisions import given_precisions
from llmpq.plan import INDICATORS, ROUNDING_METHODS, PlanOptions
from llmpq.schemes import GROUP_SIZES, SCHEMES

#: Environment variable that stands in for --coordinator.
COORDINATOR_VARIABLE = "LLMPQ_COORDINATOR"


def _host_and_port(address: str) -> str:
    if address and not re.fullmatch(r".+:\d+", address):
        raise typer.BadParameter(f"'{address}' is not HOST:PORT.")
    return address


def _can_be_written(path: Path | None) -> Path | None:
    """What is found out only after the work is found out too late."""
    if path is not None and not os.access(path.parent, os.W_OK):
        raise typer.BadParameter(f"Cannot write to the directory '{path.parent}'.")
    return path


def known_scheme(scheme: str) -> str:
    """The scheme; raises BadParameter if there is none of that name."""
    if scheme and scheme not in SCHEMES:
        raise typer.BadParameter(f"'{scheme}' is not one of {', '.join(SCHEMES)}.")
    return scheme


def _known_rounding(rounding: str) -> str:
    if rounding and rounding not in ROUNDING_METHODS:
        raise typer.BadParameter(f"'{rounding}' is not one of {', '.join(ROUNDING_METHODS)}.")
    return rounding


def _known_indicator(indicator: str) -> str:
    if indicator and indicator not in INDICATORS:
        raise typer.BadParameter(f"'{indicator}' is not one of {', '.join(INDICATORS)}.")
    return indicator


def _known_group(group: int | None) -> int | None:
    if group is not None and group not in GROUP_SIZES:
        raise typer.BadParameter(f"{group} is not one of {', '.join(map(str, GROUP_SIZES))}.")
    return group


Coordinator = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        callback=_host_and_port,
        help=f"Coordinator to talk to. Without it and {COORDINATOR_VARIABLE}, a mesh is started for this call.",
    ),
]
RunningCoordinator = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        callback=_host_and_port,
        envvar=COORDINATOR_VARIABLE,
        help="Coordinator to talk to.",
    ),
]
Stages = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Start a mesh on this machine, of this many stage servers that share its cores. "
        "1 unless there is a coordinator.",
    ),
]
Scheme = Annotated[
    str,
    typer.Option(
        metavar="|".join(SCHEMES),
        callback=known_scheme,
        help="Store every layer at this precision, instead of letting the planner choose. w8a8 rounds activations to "
        "8 bits too; so do w4 and w3 on a CPU whose native kernels are built.",
    ),
]
Precisions = Annotated[
    str,
    typer.Option(
        metavar="LIST|PLAN.json",
        help="Precision of each layer in order, as `w8*15,w4*15`, or a plan that `llmpq plan --json` wrote (with its "
        "group size and rounding). Split and micro-batches are still planned.",
    ),
]
RoundingMethod = Annotated[
    str,
    typer.Option(
        "--rounding",
        metavar="|".join(ROUNDING_METHODS),
        callback=_known_rounding,
        help=f"How weights are rounded. [dim]\\[default: {ROUNDING_METHODS[0]}][/dim]",
    ),
]
Indicator = Annotated[
    str,
    typer.Option(
        metavar="|".join(INDICATORS),
        callback=_known_indicator,
        help=f"How the cost of quantizing a layer is rated. [dim]\\[default: {INDICATORS[0]}][/dim]",
    ),
]
Symmetric = Annotated[bool, typer.Option("--symmetric", help="Round w4 and w3 around zero, as some formats want.")]
Int8KvCache = Annotated[
    bool,
    typer.Option("--int8-kv-cache", help="Cache keys and values in 8 bits: a quarter of float32, half of float16."),
]
Int8Activations = Annotated[
    bool,
    typer.Option("--int8-activations", help="Send hidden states between stages in 8 bits, for slow links."),
]
Group = Annotated[
    int | None,
    typer.Option(
        metavar="|".join(map(str, GROUP_SIZES)),
        callback=_known_group,
        help="Weights that share a scale in w4 and w3; 0 is a whole output channel. [dim]\\[default: 64][/dim]",
    ),
]
QualityWeight = Annotated[
    float | None,
    typer.Option(
        min=0, help="Seconds that quality is worth: the plan minimizes time + weight * loss (w4 all over is 1)."
    ),
]
QualityBudget = Annotated[
    float | None,
    typer.Option(min=0, help="Hard limit on the loss of quality; 1 is w4 on every layer, 0 is none."),
]
DocumentFile = Annotated[
    Path | None,
    typer.Option("--output", dir_okay=False, callback=_can_be_written, help="Write the JSON document here as well."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]


def plan_options(
    *,
    is_local: bool,
    scheme: str = "",
    group: int | None = None,
    quality_weight: float | None = None,
    quality_budget: float | None = None,
    strategy: str = "",
    precisions: str = "",
    rounding: str = "",
    symmetric: bool = False,
    indicator: str = "",
    objective: str = "",
    deadline_s: float = 0.0,
    time_limit_s: float = 0.0,
    layers_per_group: int = 0,
    int8_kv_cache: bool = False,
    int8_activations: bool = False,
) -> PlanOptions:
    """The options that the flags ask for; a mesh started for the call uses all the stages that were asked for.

    What a plan given as `precisions` says of group size, rounding and cache holds where no flag says otherwise.

    Raises:
        typer.BadParameter: Flags contradict each other, or have no effect on the schemes that are asked for.
    """
    if quality_weight is not None and quality_budget is not None:
        raise typer.BadParameter("Pass one of --quality-weight and --quality-budget, not both.")
    if scheme and precisions:
        raise typer.BadParameter("Pass one of --scheme and --precisions, not both.")
    given = given_precisions(precisions) if precisions else PlanOptions(allowed_schemes=(scheme,) if scheme else ())
    is_grouped = not given.usable_schemes or any(SCHEMES[name].is_grouped for name in given.usable_schemes)
    if not is_grouped and (group is not None or symmetric):
        raise typer.BadParameter("--group and --symmetric are for w4 and w3, and no layer is to have either.")
    return replace(
        given,
        quality_weight=quality_weight,
        quality_budget=quality_budget,
        strategy=strategy,
        group_size=given.group_size if group is None else group,
        rounding=replace(
            given.rounding,
            method=rounding or given.rounding.method,
            is_symmetric=symmetric if rounding or symmetric else given.rounding.is_symmetric,
        ),
        use_all_devices=is_local,
        indicator=indicator,
        objective=objective,
        deadline_s=deadline_s,
        time_limit_s=time_limit_s,
        layers_per_group=layers_per_group,
        has_int8_kv_cache=int8_kv_cache or given.has_int8_kv_cache,
        has_int8_activations=int8_activations or given.has_int8_activations,
    )


def described(plan_options: PlanOptions, scheme: str) -> dict[str, object]:
    """What was asked of the weights, as plain values for a report."""
    return {
        "scheme": scheme or None,
        "group": plan_options.effective_group_size,
        "rounding": plan_options.rounding.effective_method,
        "symmetric": plan_options.rounding.is_symmetric,
        "int8_kv_cache": plan_options.has_int8_kv_cache,
        "int8_activations": plan_options.has_int8_activations,
    }
