"""What is to be exported, and at which precision each layer."""

from dataclasses import dataclass, field, replace

from llmpq.errors import InvalidInputError
from llmpq.model import ModelShape
from llmpq.plan import LayerPrecision, PlanOptions, Rounding
from llmpq.schemes import GROUP_SIZES, SCHEMES
from llmpq.stored_layers import options_as_stored, read_stored_layers


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported.

    Attributes:
        model: A directory or a .gguf file.
        output: Directory to write; must not exist, or be empty.
        options: One allowed scheme, or the scheme of each layer; group size and rounding. None of them for a checkpoint
            that is quantized already.
        device: That rounds weights.
    """

    model: str
    output: str
    options: PlanOptions = field(default_factory=PlanOptions)
    device: str = "cpu"


def precisions_of(request: ExportRequest, shape: ModelShape) -> tuple[LayerPrecision, ...]:
    """The precision of each layer.

    Raises:
        InvalidInputError: None is asked for, or not one for each layer, or another than the model is stored at; or a
            group size that does not divide a matrix, which the format wants.
    """
    stored = read_stored_layers(request.model)
    if stored:
        # Whether there are zero points is stored too, and nobody's to choose.
        method = Rounding(request.options.rounding.method)
        options_as_stored(replace(request.options, rounding=method), stored, request.model)
        return stored
    options = request.options
    schemes = options.layer_schemes or options.allowed_schemes * shape.num_layers
    if len(schemes) != shape.num_layers:
        given = f"{len(schemes)} schemes are given" if schemes else "no precision is given"
        raise InvalidInputError(
            f"The model at '{request.model}' has {shape.num_layers} layers, and {given}: say one scheme for all of "
            "them, or one for each.",
            subject="options",
        )
    group_size = options.effective_group_size
    precisions = tuple(LayerPrecision(name, group_size if SCHEMES[name].is_grouped else 0) for name in schemes)
    _check_groups(shape, max(precision.group_size for precision in precisions))
    return precisions


def _check_groups(shape: ModelShape, group_size: int) -> None:
    columns = {num_columns for _, num_columns in shape.linear_shapes.values()}
    odd = sorted(count for count in columns if group_size and count % group_size)
    if odd:
        fitting = (size for size in GROUP_SIZES if size == 0 or not any(count % size for count in columns))
        raise InvalidInputError(
            f"Groups of {group_size} do not divide a matrix with {odd[0]} inputs, as checkpoints of compressed-tensors "
            f"want; sizes that do, where 0 is per channel: {', '.join(map(str, fitting))}.",
            subject="group_size",
        )
