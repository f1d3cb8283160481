"""How many bytes a stage needs: the one formula that the planner predicts with and the stage server checks against.

Weights and KV cache are exact. Temporaries are an upper bound that an implementation can keep to: `workspace_bytes`
says what it must do for that. Unlike LLM-PQ's own model, this one counts scales, biases, grouped-query attention and
gated feed-forward networks, and charges temporaries to every stage.
"""

from llmpq.model import ModelShape
from llmpq.plan import LayerPrecision
from llmpq.schemes import SCHEMES

#: Norm parameters, biases, logits and scales of an int8 cache are float32 on every stage.
_FLOAT32_BYTES = 4
#: Embeddings and head are stored in 16 bits.
_EMBEDDING_BYTES = 2
#: The order of a matrix' inputs is an int32 a channel.
_ORDER_BYTES = 4


def layer_bytes(shape: ModelShape, precision: LayerPrecision) -> int:
    """Bytes of one decoder layer: matrices with scales, metadata and the order of their inputs; norms; biases."""
    scheme = SCHEMES[precision.scheme]
    matrices = sum(scheme.weight_bytes(*matrix, precision.group_size) for matrix in shape.linear_shapes.values())
    orders = sum(columns for _, columns in shape.linear_shapes.values()) if _has_orders(shape, precision) else 0
    return matrices + (shape.num_norm_elements + shape.num_bias_elements) * _FLOAT32_BYTES + orders * _ORDER_BYTES


def embedding_bytes(shape: ModelShape) -> int:
    """Bytes of the embedding: tokens, and where the model has them learned positions, a projection and a norm."""
    positions = shape.learned_positions * shape.hidden_size
    matrices = _vocabulary_elements(shape) + positions + _projection_elements(shape)
    return matrices * _EMBEDDING_BYTES + shape.num_embedding_norm_elements * _FLOAT32_BYTES


def head_bytes(shape: ModelShape, *, is_screened: bool = False) -> int:
    """Bytes of the head: vocabulary, and where there are any its screen, a projection and the norm before it."""
    matrices = _vocabulary_elements(shape) + _projection_elements(shape)
    screen = _screen_bytes(shape) if is_screened else 0
    return matrices * _EMBEDDING_BYTES + shape.num_head_norm_elements * _FLOAT32_BYTES + screen


def embedding_head_bytes(shape: ModelShape, *, is_first: bool, is_last: bool, screens_head: bool = False) -> int:
    """Bytes outside the layers: embedding on the first stage, head on the last; a tied matrix is stored once.

    Args:
        shape: The model.
        is_first: The stage embeds.
        is_last: The stage has the head.
        screens_head: As the device describes itself.
    """
    embedding = embedding_bytes(shape) if is_first else 0
    head = head_bytes(shape, is_screened=screens_head) if is_last else 0
    is_shared = is_first and is_last and shape.tied_embeddings
    return embedding + head - (_vocabulary_elements(shape) * _EMBEDDING_BYTES if is_shared else 0)


def kv_token_bytes(shape: ModelShape, *, activation_bytes: int, is_int8: bool = False) -> int:
    """Bytes of the keys and values of a token in a layer; in int8 each head has a scale."""
    if is_int8:
        return 2 * (shape.kv_size + shape.num_kv_heads * _FLOAT32_BYTES)
    return 2 * shape.kv_size * activation_bytes


def kv_bytes(
    shape: ModelShape,
    *,
    num_layers: int,
    num_slots: int,
    max_sequence_tokens: int,
    activation_bytes: int,
    is_int8: bool = False,
) -> int:
    """Bytes of the KV cache: layers * slots * tokens * `kv_token_bytes`."""
    token_bytes = kv_token_bytes(shape, activation_bytes=activation_bytes, is_int8=is_int8)
    return num_layers * num_slots * max_sequence_tokens * token_bytes


def workspace_bytes(
    shape: ModelShape,
    *,
    is_first: bool,
    is_last: bool,
    max_prefill_tokens: int,
    decode_sequences: int,
    max_sequence_tokens: int,
    activation_bytes: int,
) -> int:
    """Bytes of the temporaries of the larger of the two phases.

    rows * per_row + attention + largest_matrix + logits, where

    - per_row: residual, normed and projected hidden states, the larger of (queries, keys, values, attended values) and
      the feed-forward activations, and the payloads of the frame that came and the one that waits behind it (unless
      first), and of the one that goes (unless last);
      where groups are scattered, also the inputs of a matrix in its own order;
    - attention: in prefill one sequence at a time, heads * new * total scores; in decode the keys and values of all
      sequences padded to one length, and their heads * total scores;
    - largest_matrix: one weight matrix of a layer expanded to the activations' type (the head is multiplied in slabs of
      no more than that, or without expanding it);
    - logits: on the last stage, vocab * 4 for each of at most `decode_sequences` rows at once.

    Args:
        shape: The model.
        is_first: The stage embeds.
        is_last: The stage has the head.
        max_prefill_tokens: Rows of a prefill frame.
        decode_sequences: Sequences that one frame may hold. A stage does not know lanes: this is the number of slots.
        max_sequence_tokens: Tokens of one slot.
        activation_bytes: Bytes of an activation, and of a KV element that is attended to.
    """
    queries = shape.num_heads * shape.head_dim
    ffn = shape.intermediate_size * (3 if shape.gated_ffn else 2)
    payloads = 2 * (not is_first) + (not is_last)
    per_row = (3 + payloads) * shape.hidden_size + max(2 * queries + 2 * shape.kv_size, ffn)
    if shape.has_scattered_groups:
        per_row += max(columns for _, columns in shape.linear_shapes.values())

    prefill_scores = shape.num_heads * min(max_prefill_tokens, max_sequence_tokens) * max_sequence_tokens
    prefill = max_prefill_tokens * per_row + prefill_scores
    gathered = decode_sequences * max_sequence_tokens * (2 * shape.kv_size + shape.num_heads)
    decode = decode_sequences * per_row + gathered

    largest_matrix = max(out_features * in_features for out_features, in_features in shape.linear_shapes.values())
    logits = decode_sequences * shape.vocab_size * _FLOAT32_BYTES if is_last else 0
    return (max(prefill, decode) + largest_matrix) * activation_bytes + logits


def _has_orders(shape: ModelShape, precision: LayerPrecision) -> bool:
    return shape.has_scattered_groups and SCHEMES[precision.scheme].is_grouped and precision.group_size > 0


def _vocabulary_elements(shape: ModelShape) -> int:
    return shape.vocab_size * shape.embedding_size


def _screen_bytes(shape: ModelShape) -> int:
    """The vocabulary in 8 bits, in whole tiles of 16 rows and 32 columns, and three float32 numbers a row."""
    rows, columns = -(-shape.vocab_size // 16) * 16, -(-shape.embedding_size // 32) * 32
    return rows * (columns + _FLOAT32_BYTES) + shape.vocab_size * 2 * _FLOAT32_BYTES


def _projection_elements(shape: ModelShape) -> int:
    """Elements of the matrix between an embedding or head and a residual stream of another width."""
    return shape.projected_embedding_size * shape.hidden_size
