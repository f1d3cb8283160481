"""The linear operators of a layer as indicators count them: matrices that are stacked here stand on their own."""

from stage_server.families import DecoderSpec


def operator_sizes(spec: DecoderSpec, role: str, num_outputs: int) -> tuple[int, ...]:
    """How many of a linear's outputs belong to each operator, in order.

    Args:
        spec: Of the model.
        role: Of the linear in LayerLinears.
        num_outputs: All of its outputs.
    """
    if role == "qkv":
        return tuple(spec.qkv_sizes)
    if role == "ffn_in" and spec.is_gated:
        return (num_outputs // 2,) * 2
    return (num_outputs,)
