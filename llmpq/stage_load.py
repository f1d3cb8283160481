"""What the coordinator asks a stage to hold, and how far that is."""

from dataclasses import dataclass

from llmpq.plan import NEAREST, LayerPrecision, Rounding, StageMemory


@dataclass(frozen=True)
class TokenSequence:
    """Mirror of the message `TokenSequence`."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class StageLoad:
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
    rounding: Rounding = NEAREST
    samples: tuple[TokenSequence, ...] = ()
    has_int8_kv_cache: bool = False
    has_int8_activations: bool = False

    @property
    def is_first(self) -> bool:
        """Whether the stage has the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether the stage has the head."""
        return self.stage == self.num_stages - 1


@dataclass(frozen=True)
class LoadProgress:
    """Mirror of the message `LoadStageResponse`; see there for each field."""

    layers_done: int
    layers_total: int
    memory: StageMemory | None = None
    activity: str = ""
