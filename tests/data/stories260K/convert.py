"""Turns the llama2.c files of stories260K into the Hugging Face directory beside this script.

python convert.py stories260K.bin tok512.bin
"""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

Array = NDArray[np.float32]

_HEADER = struct.Struct("7i")
_SPACE = "\u2581"  # how SentencePiece writes a space
_SPECIAL = ["<unk>", "<s>", "</s>"]


def main(weights: Path, pieces: Path, target: Path) -> None:
    """Writes config, weights and tokenizer."""
    config, tensors = read_checkpoint(weights.read_bytes())
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    build_tokenizer(pieces.read_bytes(), config["vocab_size"]).save(str(target / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": config["max_position_embeddings"],
    }
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def read_checkpoint(raw: bytes) -> tuple[dict[str, int | float | str | bool | list[str]], dict[str, Array]]:
    """Configuration and tensors, under transformers' names, of a version 0 checkpoint (float32, tied head)."""
    dim, ffn, num_layers, num_heads, num_kv_heads, vocab, positions = _HEADER.unpack_from(raw)
    floats = np.frombuffer(raw, dtype="<f4", offset=_HEADER.size)
    head_dim = dim // num_heads
    kv_dim = num_kv_heads * head_dim
    shapes = {
        "model.embed_tokens": (vocab, dim),
        "input_layernorm": (num_layers, dim),
        "self_attn.q_proj": (num_layers, dim, dim),
        "self_attn.k_proj": (num_layers, kv_dim, dim),
        "self_attn.v_proj": (num_layers, kv_dim, dim),
        "self_attn.o_proj": (num_layers, dim, dim),
        "post_attention_layernorm": (num_layers, dim),
        "mlp.gate_proj": (num_layers, ffn, dim),
        "mlp.down_proj": (num_layers, dim, ffn),
        "mlp.up_proj": (num_layers, ffn, dim),
        "model.norm": (dim,),
    }
    tensors: dict[str, Array] = {}
    at = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        stacked = floats[at : at + size].reshape(shape)
        at += size
        if name.startswith("model."):
            tensors[f"{name}.weight"] = stacked.copy()
            continue
        for layer, matrix in enumerate(stacked):
            heads = {"self_attn.q_proj": num_heads, "self_attn.k_proj": num_kv_heads}.get(name)
            tensors[f"model.layers.{layer}.{name}.weight"] = (
                halves_from_pairs(matrix, heads) if heads else matrix.copy()
            )
    config: dict[str, int | float | str | bool | list[str]] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": ffn,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }
    return config, tensors


def halves_from_pairs(matrix: Array, num_heads: int) -> Array:
    """Reorders a query or key projection (out, in) for the other layout of rotary embeddings.

    llama2.c rotates neighbouring elements of a head; transformers rotates element i with element i + head_dim / 2.
    """
    out_features, in_features = matrix.shape
    pairs = matrix.reshape(num_heads, out_features // num_heads // 2, 2, in_features)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(out_features, in_features))


def build_tokenizer(raw: bytes, vocab_size: int) -> Tokenizer:
    """SentencePiece's BPE with byte fallback, from the pieces and scores of a llama2.c tokenizer file."""
    pieces = list(_pieces(raw, vocab_size))
    vocab = {piece: index for index, (piece, _) in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(pieces, vocab), unk_token="<unk>", fuse_unk=True, byte_fallback=True),  # noqa: S106 no password
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)],
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A",
        pair="<s> $A <s> $B",
        special_tokens=[("<s>", vocab["<s>"])],
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return tokenizer


def _pieces(raw: bytes, vocab_size: int) -> Iterator[tuple[str, float]]:
    """Pieces and scores in order of id; the file starts with the length of the longest piece."""
    at = 4
    for index in range(vocab_size):
        score, length = struct.unpack_from("<fi", raw, at)
        at += 8
        piece = raw[at : at + length].decode()
        at += length
        yield (_SPECIAL[index] if index < len(_SPECIAL) else piece.replace(" ", _SPACE)), score


def _merges(pieces: list[tuple[str, float]], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best piece first."""
    ranked = sorted((piece for piece in pieces if piece[0] not in _SPECIAL), key=lambda piece: -piece[1])
    return [
        (piece[:cut], piece[cut:])
        for piece, _ in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(__file__).parent)
