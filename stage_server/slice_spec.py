"""What a stage is asked to hold, and the memory that takes."""

from dataclasses import dataclass

from llmpq import memory
from llmpq.device import DeviceDescription
from llmpq.errors import DoesNotFitError, InvalidInputError
from llmpq.model import ModelShape
from llmpq.plan import LayerPrecision, StageMemory


@dataclass(frozen=True)
class SliceSpec:
    """Mirror of the message `LoadStageRequest`; see there for each field."""

    deployment_id: str
    plan_hash: str
    model: str
    stage: int
    num_stages: int
    first_layer: int
    layers: tuple[LayerPrecision, ...]
    num_slots: int
    max_sequence_tokens: int
    max_frame_tokens: int
    next_address: str

    @property
    def is_first(self) -> bool:
        """Whether the stage has the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether the stage has the head."""
        return self.stage == self.num_stages - 1

    def weights_key(self, fingerprint: str) -> tuple[object, ...]:
        """Equal for specs whose weights are the same, whatever their cache and neighbours.

        Args:
            fingerprint: Of the model's files, which may have been replaced under the same name.
        """
        return self.model, fingerprint, self.first_layer, self.layers, self.is_first, self.is_last

    def check(self, shape: ModelShape) -> None:
        """Raises InvalidInputError if the spec contradicts itself or the model."""
        if not self.layers or self.first_layer + len(self.layers) > shape.num_layers:
            end = self.first_layer + len(self.layers)
            raise InvalidInputError(
                f"Layers [{self.first_layer}, {end}) are not layers of a model of {shape.num_layers}.",
                subject="layers",
            )
        if self.stage >= self.num_stages:
            raise InvalidInputError(f"Stage {self.stage} of {self.num_stages} does not exist.", subject="stage")
        for field in ("num_slots", "max_sequence_tokens", "max_frame_tokens"):
            if getattr(self, field) < 1:
                raise InvalidInputError(f"{field} must be at least 1.", subject=field)
        if self.max_sequence_tokens > shape.max_positions:
            raise InvalidInputError(
                f"max_sequence_tokens {self.max_sequence_tokens} is over the model's context of {shape.max_positions}.",
                subject="max_sequence_tokens",
            )

    def expected_memory(self, shape: ModelShape, device: DeviceDescription) -> StageMemory:
        """The memory it will take on a device."""
        return StageMemory(
            layer_bytes=sum(memory.layer_bytes(shape, precision) for precision in self.layers),
            embedding_head_bytes=memory.embedding_head_bytes(shape, is_first=self.is_first, is_last=self.is_last),
            kv_bytes=memory.kv_bytes(
                shape,
                num_layers=len(self.layers),
                num_slots=self.num_slots,
                max_sequence_tokens=self.max_sequence_tokens,
                activation_bytes=device.activation_bytes,
            ),
            workspace_bytes=memory.workspace_bytes(
                shape,
                is_first=self.is_first,
                is_last=self.is_last,
                max_prefill_tokens=self.max_frame_tokens,
                decode_sequences=self.num_slots,
                max_sequence_tokens=self.max_sequence_tokens,
                activation_bytes=device.activation_bytes,
            ),
            budget_bytes=device.memory_budget_bytes,
        )


def require_fit(device_id: str, spec: SliceSpec, expected: StageMemory) -> None:
    """Raises DoesNotFitError naming the device and the bytes it is short, if the slice is over the budget."""
    short = expected.used_bytes - expected.budget_bytes
    if short > 0:
        what = f"Stage {spec.stage} (layers {spec.first_layer} to {spec.first_layer + len(spec.layers) - 1})"
        raise DoesNotFitError.on_device(device_id, what, short)
