"""The memory model: what a stage takes on its device. The formulas are `llmpq.memory`'s; stages use the same ones."""

from collections.abc import Sequence

from llmpq import memory
from llmpq.device import DeviceDescription
from llmpq.model import ModelShape
from llmpq.plan import LayerPrecision, StageMemory


def stage_memory(
    shape: ModelShape,
    description: DeviceDescription,
    layers: Sequence[LayerPrecision],
    *,
    is_first: bool,
    is_last: bool,
    num_slots: int,
    max_sequence_tokens: int,
    max_prefill_tokens: int,
    has_int8_kv_cache: bool,
) -> StageMemory:
    """Memory of a stage with these layers: layers + embedding and head + KV cache + workspace of the larger phase."""
    return StageMemory(
        layer_bytes=sum(memory.layer_bytes(shape, precision) for precision in layers),
        embedding_head_bytes=memory.embedding_head_bytes(
            shape, is_first=is_first, is_last=is_last, screens_head=description.screens_head
        ),
        kv_bytes=memory.kv_bytes(
            shape,
            num_layers=len(layers),
            num_slots=num_slots,
            max_sequence_tokens=max_sequence_tokens,
            activation_bytes=description.activation_bytes,
            is_int8=has_int8_kv_cache,
        ),
        workspace_bytes=memory.workspace_bytes(
            shape,
            is_first=is_first,
            is_last=is_last,
            max_prefill_tokens=max_prefill_tokens,
            decode_sequences=num_slots,
            max_sequence_tokens=max_sequence_tokens,
            activation_bytes=description.activation_bytes,
        ),
        budget_bytes=description.memory_budget_bytes,
    )
