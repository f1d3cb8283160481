"""What a stage is asked to measure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ProfileRequest:
    """Mirror of the message `ProfileLayersRequest`; see there for each field."""

    model: str
    schemes: tuple[str, ...]
    group_size: int
    is_fresh: bool = False
    has_int8_kv_cache: bool = False
    busy_neighbours: int = 0
    only_kept: bool = False
