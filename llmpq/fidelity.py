"""How well the planner predicts, as measured: what a stage took beside what it was expected to take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FidelityResult:
    """Mirror of the message `FidelityResult`; see there for each field."""

    device_id: str
    first_layer: int
    schemes: tuple[str, ...]
    has_head: bool
    prefill_sequences: int
    decode_sequences: int
    prompt_tokens: int
    predicted_prefill_ms: float
    measured_prefill_ms: float
    predicted_decode_ms: float
    measured_decode_ms: float
    predicted_bytes: int
    measured_bytes: int
