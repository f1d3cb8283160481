"""Writes models as GGUF files in the form in which llama.cpp's converter writes them."""

from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from transformers import PreTrainedModel

_ARCHITECTURES = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
#: What llama.cpp calls the families that it names differently.
_NAMES = {"mistral": "llama", "gemma3_text": "gemma3"}


def write_gguf(model: PreTrainedModel, path: Path, **extra: str | int) -> Path:
    """Writes a model in float32; returns the path.

    Args:
        model: Of a family that llama.cpp has.
        path: Where to.
        extra: Further fields of the architecture; `__` stands for a dot.
    """
    config = model.config
    name = _NAMES.get(config.model_type, config.model_type)
    writer = GGUFWriter(path, name)
    _write_fields(writer, config, name)
    for field, value in extra.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{name}.{field.replace('__', '.')}", value)
    for tensor_name, tensor in _tensors(model, name).items():
        writer.add_tensor(tensor_name, np.ascontiguousarray(tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_fields(writer: GGUFWriter, config: object, name: str) -> None:
    num_heads, hidden_size = config.num_attention_heads, config.hidden_size
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(hidden_size)
    writer.add_head_count(num_heads)
    writer.add_token_list([f"t{index}" for index in range(config.vocab_size)])
    writer.add_array("tokenizer.ggml.scores", [0.0] * 5000)
    writer.add_bos_token_id(1)
    if name == "bloom":
        writer.add_feed_forward_length(4 * hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head_dim = getattr(config, "head_dim", None) or hidden_size // num_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if name != "phi3":
        writer.add_key_length(head_dim)
    rotary = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rotary["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rotary.get("partial_rotary_factor", 1.0)))
    if rotary["rope_type"] == "linear":
        writer.add_string(f"{name}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(rotary["factor"])
    if name in {"gemma2", "gemma3"}:
        writer.add_sliding_window(config.sliding_window)
        if config.final_logit_softcapping is not None:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if name == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        if rotary["rope_type"] == "longrope":
            factor = config.max_position_embeddings / config.original_max_position_embeddings
            scale = (1 + np.log(factor) / np.log(config.original_max_position_embeddings)) ** 0.5
            writer.add_rope_scaling_attn_factors(float(scale))


def _tensors(model: PreTrainedModel, name: str) -> dict[str, torch.Tensor]:
    config = model.config
    names = get_tensor_name_map(_ARCHITECTURES[name], config.num_hidden_layers)
    tensors = {}
    for key, stored in model.state_dict().items():
        module, _, suffix = key.rpartition(".")
        if module == "lm_head" and config.tie_word_embeddings:
            continue
        known = names.get_name(module) or names.get_name(module.partition(".")[2])
        assert known is not None, key
        tensors[f"{known}.{suffix}"] = _converted(stored, module.rpartition(".")[2], config, name)
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") == "llama3":
        plain = rotary["rope_theta"] ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        tensors["rope_freqs.weight"] = plain / model.model.rotary_emb.inv_freq
    if rotary.get("rope_type") == "longrope":
        tensors["rope_factors_long.weight"] = torch.tensor(rotary["long_factor"])
        tensors["rope_factors_short.weight"] = torch.tensor(rotary["short_factor"])
    return tensors


def _converted(tensor: torch.Tensor, module: str, config: object, name: str) -> torch.Tensor:
    if name == "llama" and module in {"q_proj", "k_proj"}:
        num_heads = config.num_attention_heads if module == "q_proj" else config.num_key_value_heads
        halves = tensor.view(num_heads, 2, -1, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)
    if name.startswith("gemma") and module.endswith("norm"):
        return tensor.float() + 1
    if module == "query_key_value":
        by_head = tensor.view(config.n_head, 3, -1, *tensor.shape[1:])
        return by_head.transpose(0, 1).reshape(tensor.shape)
    return tensor
