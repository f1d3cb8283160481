"""Writes a checkpoint of compressed-tensors, a layer at a time: what a mesh would serve bit for bit, but unrotated."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from llmpq.errors import InvalidInputError
from llmpq.families import linear_names
from llmpq.formats import StoredLinear
from llmpq.formats.exported import describe, stored_as
from llmpq.model import read_shape
from llmpq.plan import LayerPrecision
from quantizer.formats.compressed_tensors import to_tensors
from quantizer.rounded import GroupRounded, RoundedWeight
from stage_server.device import ComputeDevice
from stage_server.export.model_files import copy_tokenizer, write_config
from stage_server.export.output import appearing
from stage_server.export.plain_tensors import in_layer, outside_layers
from stage_server.export.request import ExportRequest, precisions_of
from stage_server.export.shards import ShardWriter
from stage_server.layer_rounding import LayerRounder
from stage_server.loader import ModelLoader
from stage_server.sample_run import Samples
from stage_server.source import ModelSource, SourceLayer

#: Takes the number of layers written, and of all.
OnLayer = Callable[[int, int], None]


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        output: The directory.
        layers: Precision of each layer.
        total_bytes: Of all tensors.
        has_zero_points: Whether some layer has, which is not for every reader; see docs/quantization.md.
        has_tokenizer: Whether the model came with a tokenizer that could be written too.
    """

    output: str
    layers: tuple[LayerPrecision, ...]
    total_bytes: int
    has_zero_points: bool
    has_tokenizer: bool


def export(
    request: ExportRequest,
    device: ComputeDevice,
    samples: Samples = (),
    on_layer: OnLayer = lambda _done, _total: None,
) -> ExportReport:
    """Exports a model, holding a layer and a file's worth of tensors in memory.

    Args:
        request: What.
        device: That rounds weights.
        samples: Token ids of calibration sequences, where the rounding needs them.
        on_layer: Told of each layer.

    Raises:
        NotFoundError, InvalidInputError: As ModelSource, `precisions_of` and LayerRounder.
        ConflictError: Something is at the output already.
        OSError: The output cannot be written, or not all of it.
    """
    shape = read_shape(request.model)
    precisions = precisions_of(request, shape)
    loader = ModelLoader(request.model, device.torch_device, device.compute_dtype)
    source = loader.source
    with appearing(Path(request.output)) as directory:
        with ShardWriter(directory) as shards:
            source.expect(range(len(precisions)), embedding=True, head=True)
            dtype = _write_ends(shards, loader)
            rounding = replace(request.options.rounding, is_unrotated=True)  # the format has inputs as they are
            rounder = LayerRounder(loader, device, rounding, samples)
            layers = _write_layers(shards, source, rounder, precisions, on_layer)
        names = linear_names(shape.family)
        quantization = describe(names.layer, names.all, layers, source.spec.names.head)
        write_config(request.model, directory, quantization, dtype, is_tied=source.is_tied)
        has_tokenizer = copy_tokenizer(request.model, directory)
    has_zero_points = any(layer is not None and not layer.is_symmetric for layer in layers)
    return ExportReport(request.output, precisions, shards.total_bytes, has_zero_points, has_tokenizer)


def _write_ends(shards: ShardWriter, loader: ModelLoader) -> torch.dtype:
    """Writes what is outside the layers; returns the type of the embedding."""
    dtypes = []
    for name, tensor in outside_layers(loader):
        shards.add(name, tensor)
        dtypes.append(tensor.dtype)
    return dtypes[0]


def _write_layers(
    shards: ShardWriter,
    source: ModelSource,
    rounder: LayerRounder,
    precisions: tuple[LayerPrecision, ...],
    on_layer: OnLayer,
) -> list[StoredLinear | None]:
    """Writes the layers, in whatever order they come; returns how each is stored, None as floats."""
    stored: dict[int, StoredLinear | None] = {}
    for layer in rounder.layers(dict(enumerate(precisions))):
        shards.add_all(in_layer(source, layer.index))
        weights = _weights(source, layer)
        how = stored_as(precisions[layer.index], is_symmetric=all(map(_is_symmetric, weights.values())))
        for module, weight in weights.items():
            shards.add_all((f"{module}.{name}", tensor) for name, tensor in to_tensors(weight, how).items())
        stored[layer.index] = how
        on_layer(len(stored), len(precisions))
    return [stored[index] for index in range(len(precisions))]


def _weights(source: ModelSource, layer: SourceLayer) -> dict[str, RoundedWeight]:
    """The weights of a rounded layer by the names of their modules."""
    weights: dict[str, RoundedWeight] = {}
    for role, linear in layer.linears.items():
        if linear.input_order is not None:
            raise InvalidInputError(
                f"Layer {layer.index} is quantized in the order of activations (desc_act), which checkpoints of "
                "compressed-tensors cannot hold. Take the model that was not quantized.",
                reason="UNSUPPORTED_QUANTIZATION",
                subject="model",
            )
        weights |= source.linears.divided(layer.index, role, cast("RoundedWeight", linear.stored))
    return weights


def _is_symmetric(weight: RoundedWeight) -> bool:
    """Whether all zero points are the middle code: the format then stores none."""
    return not isinstance(weight, GroupRounded) or bool((weight.zeros == 2 ** (weight.bits - 1)).all())
