"""Whether a load can be: against the model, and against the memory of the device."""

from collections.abc import Sequence

from llmpq import memory
from llmpq.address import split_address
from llmpq.device import DeviceDescription
from llmpq.errors import DoesNotFitError, InvalidInputError
from llmpq.model import ModelShape
from llmpq.plan import ROUNDING_METHODS, LayerPrecision, StageMemory
from llmpq.schemes import GROUP_SIZES
from llmpq.stage_load import StageLoad
from llmpq.stored_layers import other_precision


def check_load(load: StageLoad, shape: ModelShape) -> None:
    """Raises InvalidInputError if a load contradicts itself or the model."""
    if not load.deployment_id:
        raise InvalidInputError("deployment_id must not be empty.", subject="deployment_id")
    split_address(load.next_address, "next_address")
    if load.stage >= load.num_stages:
        raise InvalidInputError(f"Stage {load.stage} of {load.num_stages} does not exist.", subject="stage")
    _check_layers(load, shape)
    _check_rounding(load)
    for field in ("num_slots", "max_sequence_tokens", "max_frame_tokens"):
        if getattr(load, field) < 1:
            raise InvalidInputError(f"{field} must be at least 1.", subject=field)
    if load.max_sequence_tokens > shape.max_positions:
        raise InvalidInputError(
            f"max_sequence_tokens {load.max_sequence_tokens} is over the model's context of {shape.max_positions}.",
            subject="max_sequence_tokens",
        )


def check_stored(load: StageLoad, stored: Sequence[LayerPrecision]) -> None:
    """Raises InvalidInputError for a layer that is to be held at another precision than a quantized model stores it at.

    Args:
        load: What is asked for.
        stored: Of every layer of the model; empty if it is not quantized.
    """
    for index, precision in enumerate(load.layers, load.first_layer):
        if stored and stored[index] != precision:
            raise other_precision(f"Layer {index} of the model at '{load.model}'", stored[index], precision)


def _check_layers(load: StageLoad, shape: ModelShape) -> None:
    end = load.first_layer + len(load.layers)
    where = f"Layers [{load.first_layer}, {end}) on stage {load.stage} of {load.num_stages}"
    if not load.layers or end > shape.num_layers:
        raise InvalidInputError(f"{where} are not layers of a model of {shape.num_layers}.", subject="layers")
    if load.is_first != (load.first_layer == 0) or load.is_last != (end == shape.num_layers):
        raise InvalidInputError(
            f"{where}: the first stage, and no other, has layer 0, and the last one layer {shape.num_layers - 1}.",
            subject="layers",
        )
    for precision in load.layers:
        check_group_size(precision.group_size)


def _check_rounding(load: StageLoad) -> None:
    if load.rounding.effective_method not in ROUNDING_METHODS:
        raise InvalidInputError(
            f"Unknown rounding '{load.rounding.method}': there are {', '.join(ROUNDING_METHODS)}.",
            reason="UNKNOWN_ROUNDING",
            subject="rounding",
        )
    is_rounded = any(precision.scheme != "w16" for precision in load.layers)
    if load.rounding.needs_calibration and is_rounded and not load.samples:
        raise InvalidInputError(
            f"Rounding '{load.rounding.method}' needs calibration samples, and the load has none.",
            reason="NO_CALIBRATION_DATA",
            subject="samples",
        )


def check_group_size(group_size: int) -> None:
    """Raises InvalidInputError if there is no such group size."""
    if group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise InvalidInputError(
            f"Unknown group size {group_size}: there are {sizes}, where 0 is per channel.",
            reason="UNKNOWN_GROUP_SIZE",
            subject="group_size",
        )


def expected_memory(load: StageLoad, shape: ModelShape, device: DeviceDescription) -> StageMemory:
    """The memory a load will take on a device."""
    return StageMemory(
        layer_bytes=sum(memory.layer_bytes(shape, precision) for precision in load.layers),
        embedding_head_bytes=memory.embedding_head_bytes(
            shape, is_first=load.is_first, is_last=load.is_last, screens_head=device.screens_head
        ),
        kv_bytes=memory.kv_bytes(
            shape,
            num_layers=len(load.layers),
            num_slots=load.num_slots,
            max_sequence_tokens=load.max_sequence_tokens,
            activation_bytes=device.activation_bytes,
            is_int8=load.has_int8_kv_cache,
        ),
        workspace_bytes=memory.workspace_bytes(
            shape,
            is_first=load.is_first,
            is_last=load.is_last,
            max_prefill_tokens=load.max_frame_tokens,
            decode_sequences=load.num_slots,
            max_sequence_tokens=load.max_sequence_tokens,
            activation_bytes=device.activation_bytes,
        ),
        budget_bytes=device.memory_budget_bytes,
    )


def require_fit(device_id: str, load: StageLoad, expected: StageMemory) -> None:
    """Raises DoesNotFitError naming the device and the bytes it is short, if the slice is over the budget."""
    short = expected.used_bytes - expected.budget_bytes
    if short > 0:
        what = f"Stage {load.stage} (layers {load.first_layer} to {load.first_layer + len(load.layers) - 1})"
        raise DoesNotFitError.on_device(device_id, what, short)


def weights_key(load: StageLoad, fingerprint: str) -> tuple[object, ...]:
    """Equal for loads whose weights are the same, whatever their cache and neighbours.

    Args:
        load: What is asked for.
        fingerprint: Of the model's files, which may have been replaced under the same name.
    """
    samples = load.samples if load.rounding.needs_calibration else ()
    return load.model, fingerprint, load.first_layer, load.layers, load.rounding, samples, load.is_first, load.is_last
