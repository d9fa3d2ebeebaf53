"""Models that transformers computes with classes of its own, Llama, Qwen2 or Qwen3, and llama.cpp from one file.

What keeps a model from being one of them is named: a cap on its logits, layers with a window in Llama, an engram.
Qwen2 asks for biases in q, k and v, which are written as zeros. A GGUF file (the format of ggml) is Llama's, or, with
norms of q and k, Qwen3's, which have no windows there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from train.config import ModelConfig, TrainError
from train.data.manifest import Tokenizer

KINDS = {True: "full_attention", False: "sliding_attention"}


class Architecture(NamedTuple):
    """What a class of transformers can be."""

    name: str
    qk_norm: str  # the value of model.qk_norm that it has
    windows: bool  # whether layers may have a window
    biases: bool  # whether q, k and v have biases


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "none", windows=False, biases=False),
    "qwen2": Architecture("Qwen2ForCausalLM", "none", windows=True, biases=True),
    "qwen3": Architecture("Qwen3ForCausalLM", "weighted", windows=True, biases=False),
}


def unlike(cfg: ModelConfig, kind: str) -> list[str]:
    """Return the keys whose values a class has not; empty for a model that it computes."""
    architecture = ARCHITECTURES[kind]
    free = {"n_kv_heads", "qk_norm", "layer_kinds", *(() if architecture.biases else ("head_dim",))}
    wrong = [name for name in cfg.further_parts() if name not in free]
    wrong += ["engram_enabled"] * cfg.engram_enabled
    wrong += ["lm_head_logit_cap"] * (cfg.lm_head_logit_cap is not None)
    wrong += ["qk_norm"] * (cfg.qk_norm != architecture.qk_norm)
    if cfg.has_sliding_layers and not architecture.windows:
        wrong.append("attention_pattern" if cfg.layer_kinds is None else "layer_kinds")
    return wrong


def check_kind(cfg: ModelConfig, kind: str) -> None:
    """Raise TrainError where a model is not of a class, with what it is by, and what it could be."""
    wrong = unlike(cfg, kind)
    if wrong:
        others = [name for name in ARCHITECTURES if not unlike(cfg, name)]
        values = ", ".join(f"model.{name} = {getattr(cfg, name)}" for name in wrong)
        raise TrainError(f"{ARCHITECTURES[kind].name} has no {values}; choose --format {(*others, 'hf')[0]}")


def hf_config(cfg: ModelConfig, vocab_size: int, dtype: str, kind: str) -> dict[str, Any]:
    """Return config.json, but for the special tokens. Raises TrainError as `check_kind` does."""
    check_kind(cfg, kind)
    windows = {
        "use_sliding_window": True,
        "sliding_window": cfg.sliding_window,
        "layer_types": [KINDS[cfg.is_global(layer)] for layer in range(cfg.n_layers)],
    }
    return {
        "architectures": [ARCHITECTURES[kind].name],
        "model_type": kind,
        "dtype": dtype,
        "vocab_size": vocab_size,
        "hidden_size": cfg.dim,
        "intermediate_size": cfg.hidden,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.kv_heads,
        **({} if kind == "qwen2" else {"head_dim": cfg.head_size}),
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_seq_len,
        "rope_theta": cfg.rope_base,  # of transformers 4; 5 reads what follows
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_base},
        "rms_norm_eps": cfg.norm_eps,
        "initializer_range": cfg.init_std,
        "tie_word_embeddings": cfg.tie_embeddings,
        **(windows if cfg.has_sliding_layers else {}),
    }


def with_biases(named: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return weights under transformers' names with those that a class asks for besides, which are 0."""
    if not ARCHITECTURES[kind].biases:
        return named
    projections = [name for name in named if re.search(r"self_attn\.[qkv]_proj\.weight$", name)]
    return named | {name.replace(".weight", ".bias"): named[name].new_zeros(len(named[name])) for name in projections}


# ---------------------------------------------------------------------------------------------------------------------
# GGUF

GGUF_NAMES = (
    (r"embed\.weight", "token_embd.weight"),
    (r"head\.weight", "output.weight"),
    (r"norm\.weight", "output_norm.weight"),
    (r"blocks\.(\d+)\.attn_norm\.weight", r"blk.\1.attn_norm.weight"),
    (r"blocks\.(\d+)\.mlp_norm\.weight", r"blk.\1.ffn_norm.weight"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.weight", r"blk.\1.attn_\2.weight"),
    (r"blocks\.(\d+)\.attn\.o\.weight", r"blk.\1.attn_output.weight"),
    (r"blocks\.(\d+)\.attn\.([qk])_norm\.weight", r"blk.\1.attn_\2_norm.weight"),
    (r"blocks\.(\d+)\.mlp\.(gate|up|down)\.weight", r"blk.\1.ffn_\2.weight"),
)
# How llama.cpp calls the ways of cutting text that we have (its src/llama-vocab.cpp), whose patterns these are
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {WORDS.replace("DIGITS", digits): name for digits, name in ((r"\p{N}{1,3}", "llama-bpe"), (r"\p{N}", "qwen2"))}
NORMAL, CONTROL = 1, 3  # types of tokens


def write_gguf(
    weights: dict[str, Tensor],
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    definition: dict[str, Any],
    name: str,
    path: Path,
) -> None:
    """Write a model and its tokenizer as one file, matrices in the type that they have, the rest in fp32.

    weights: under our names. definition: tokenizer.json. Raises TrainError for what llama.cpp has no form of.
    """
    try:
        import gguf
    except ImportError:
        raise TrainError("--format gguf needs the package gguf: pip install gguf") from None
    kind = "qwen3" if cfg.qk_norm != "none" else "llama"
    check_kind(cfg, kind)
    if cfg.has_sliding_layers:
        raise TrainError("llama.cpp has no windows in Qwen3; choose --format qwen3")
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name(name)
    writer.add_context_length(cfg.max_seq_len)
    writer.add_embedding_length(cfg.dim)
    writer.add_block_count(cfg.n_layers)
    writer.add_feed_forward_length(cfg.hidden)
    writer.add_head_count(cfg.n_heads)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_key_length(cfg.head_size)
    writer.add_value_length(cfg.head_size)
    writer.add_rope_dimension_count(cfg.head_size)
    writer.add_rope_freq_base(cfg.rope_base)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_vocab_size(tokenizer.vocab_size)
    add_tokenizer(writer, tokenizer, definition)
    for ours, weight in weights.items():
        if kind == "llama" and re.search(r"\.attn\.[qk]\.weight$", ours):
            weight = neighbors_together(weight, cfg.head_size)
        half = weight.dtype == torch.bfloat16 and weight.ndim == 2
        data = weight.float().numpy()
        form = gguf.GGMLQuantizationType.BF16 if half else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(ours), gguf.quants.quantize(data, form) if half else data, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Return the file's name of our parameter `name`, one of a model that `check_kind` let pass."""
    return next(match.expand(theirs) for ours, theirs in GGUF_NAMES if (match := re.fullmatch(ours, name)))


def neighbors_together(weight: Tensor, head_size: int) -> Tensor:
    """Return q's or k's rows in the order in which ggml turns them: pairs beside each other, not half a head apart."""
    return weight.view(-1, 2, head_size // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def add_tokenizer(writer: Any, tokenizer: Tokenizer, definition: dict[str, Any]) -> None:
    """Add a byte-level BPE. Raises TrainError for one that llama.cpp has not."""
    model, cut = definition["model"], name_of_cut(definition.get("pre_tokenizer") or {})
    if model.get("type") != "BPE" or not cut or definition.get("normalizer"):
        raise TrainError("llama.cpp has no tokenizer that cuts text as this one does; choose another --format")
    tokens: list[str] = [""] * tokenizer.vocab_size
    types = [NORMAL] * tokenizer.vocab_size
    for token, i in model["vocab"].items():
        tokens[i] = token
    for token, i in tokenizer.special_ids.items():
        tokens[i], types[i] = token, CONTROL
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.bos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(True)


def name_of_cut(cut: dict[str, Any]) -> str:
    """Return llama.cpp's name of the way in which a byte-level tokenizer.json cuts text, "" where it has none."""
    steps = cut.get("pretokenizers", [cut])
    if steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return ""
    if len(steps) == 1 and steps[0].get("use_regex", True):
        return "gpt-2"
    pattern = steps[0].get("pattern", {}).get("Regex", "")
    return CUTS.get(pattern, "") if len(steps) == 2 and not steps[1].get("use_regex", True) else ""
