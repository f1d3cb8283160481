"""Which precisions the layers of a quantized checkpoint are stored at, and what that leaves to a plan."""

from collections.abc import Sequence
from dataclasses import replace

from llmpq.errors import InvalidInputError
from llmpq.families import linear_names
from llmpq.formats import StoredLinear, quantization_of
from llmpq.formats.stored import unsupported
from llmpq.model import read_config
from llmpq.plan import NEAREST, LayerPrecision, PlanOptions
from llmpq.schemes import SCHEMES

_HEAD = "lm_head"
_SIXTEEN_BITS = LayerPrecision("w16")


def read_stored_layers(model: str) -> tuple[LayerPrecision, ...]:
    """The precision that each layer of a quantized checkpoint is stored at, w16 for plain floats; none if all are.

    Raises:
        NotFoundError, InvalidInputError: As `read_config`; linears of one layer, or groups of several, are stored in
            different ways, or the head is quantized.
    """
    config = read_config(model)
    quantization = quantization_of(config)
    if quantization is None:
        return ()
    if quantization.of(_HEAD) is not None:
        raise unsupported("quantization_config", f"that '{_HEAD}' is quantized, which it does not ignore")
    names = linear_names(config.model_type)
    layers = []
    for index in range(config.shape.num_layers):
        modules = [names.layer.format(index) + module for module in names.all]
        layers.append(_common({module: quantization.of(module) for module in modules}))
    _check_alike([stored for stored in layers if stored is not None])
    return tuple(stored.precision if stored is not None else _SIXTEEN_BITS for stored in layers)


def options_as_stored(options: PlanOptions, stored: Sequence[LayerPrecision], model: str) -> PlanOptions:
    """Options that leave every layer at the precision it is stored at; the quality of it is that of the model.

    Raises:
        InvalidInputError: The options ask for another precision or rounding; names both.
    """
    schemes = tuple(layer.scheme for layer in stored)
    group_size = next((layer.group_size for layer in stored if SCHEMES[layer.scheme].is_grouped), None)
    asked_for = ""
    if options.layer_schemes and options.layer_schemes != schemes:
        asked_for = "other schemes of some layers"
    elif options.usable_schemes and not set(schemes) <= set(options.usable_schemes):
        asked_for = ", ".join(options.usable_schemes)
    elif group_size is not None and options.group_size not in {None, group_size}:
        asked_for = f"groups of {options.group_size}"
    elif options.rounding != NEAREST:
        asked_for = f"rounding by '{options.rounding.effective_method}'"
    if asked_for:
        raise _stored_otherwise(f"The model at '{model}'", " and ".join(dict.fromkeys(map(_text, stored))), asked_for)
    return replace(
        options,
        allowed_schemes=(),
        layer_schemes=schemes,
        group_size=options.group_size if group_size is None else group_size,
        quality_weight=None,
        quality_budget=None,
    )


def other_precision(what: str, stored: LayerPrecision, asked_for: LayerPrecision) -> InvalidInputError:
    """The error for a layer that is to be held at another precision than it is stored at."""
    return _stored_otherwise(what, _text(stored), _text(asked_for))


def _stored_otherwise(what: str, stored: str, asked_for: str) -> InvalidInputError:
    return InvalidInputError(
        f"{what} is quantized already, to {stored}, and is served as it is stored; {asked_for} cannot be had. "
        "Ask for no precision, or take the model that was not quantized.",
        reason="STORED_PRECISION",
        subject="precision",
    )


def _common(linears: dict[str, StoredLinear | None]) -> StoredLinear | None:
    """How a layer is stored, of which all linears must be of one precision."""
    texts = {module: _kind(stored) for module, stored in linears.items()}
    first, *others = texts
    unlike = next((module for module in others if texts[module] != texts[first]), None)
    if unlike is not None:
        raise unsupported("quantization_config", f"{texts[first]} for '{first}' but {texts[unlike]} for '{unlike}'")
    return linears[first]


def _check_alike(layers: Sequence[StoredLinear]) -> None:
    """Refuses what a plan or a shape has only one of: a group size, and groups scattered in all layers or in none."""
    grouped = [stored for stored in layers if SCHEMES[stored.precision.scheme].is_grouped]
    if len({(stored.precision.group_size, stored.is_scattered) for stored in grouped}) > 1:
        kinds = " and ".join(dict.fromkeys(map(_kind, grouped)))
        raise unsupported("quantization_config", f"layers of {kinds} in one model")


def _kind(stored: StoredLinear | None) -> str:
    if stored is None:
        return "floats"
    return f"{_text(stored.precision)}{' that are scattered' if stored.is_scattered else ''}"


def _text(precision: LayerPrecision) -> str:
    if not SCHEMES[precision.scheme].is_grouped:
        return precision.scheme
    return f"{precision.scheme} {f'in groups of {precision.group_size}' if precision.group_size else 'per channel'}"
