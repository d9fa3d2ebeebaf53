"""Gemma 3 as transformers keeps it: a folder with config.json and model.safetensors, in one file or several.

`Gemma3ForCausalLM` of transformers computes what our model does with Gemma 3's parts, in fp32 to the last digits
(tests/train/checkpoint/test_gemma3.py). So such a model is exported as that architecture, without code of its own, and
`train.init_from` takes such a folder. Here is all that knows the names of both sides.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from train.config import ModelConfig, TrainError
from train.model.transformer import on_meta_device

MODEL_TYPE = "gemma3_text"
# The parts that make a model Gemma 3, and the other keys that it may have with any value
PARTS: dict[str, tuple[object, ...]] = {
    "qk_norm": ("weighted",),
    "mlp": ("geglu",),
    "norm": ("one_plus",),
    "sandwich_norms": (True,),
    "embed_scale": ("sqrt_dim_rounded", "sqrt_dim"),
}
FREE = ("n_kv_heads", "head_dim", "layer_kinds", "rope_base_global")
KINDS = {"sliding_attention": "sliding", "full_attention": "global"}
# What else transformers' configuration has, with the only values that our model can be
FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
}
NAMES = (  # ours, and theirs
    ("embed.weight", "model.embed_tokens.weight"),
    ("head.weight", "lm_head.weight"),
    ("norm.weight", "model.norm.weight"),
    ("blocks.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight"),
    ("blocks.{}.attn_out_norm.weight", "model.layers.{}.post_attention_layernorm.weight"),
    ("blocks.{}.mlp_norm.weight", "model.layers.{}.pre_feedforward_layernorm.weight"),
    ("blocks.{}.mlp_out_norm.weight", "model.layers.{}.post_feedforward_layernorm.weight"),
    *((f"blocks.{{}}.attn.{name}_norm.weight", f"model.layers.{{}}.self_attn.{name}_norm.weight") for name in "qk"),
    *((f"blocks.{{}}.attn.{name}.weight", f"model.layers.{{}}.self_attn.{name}_proj.weight") for name in "qkvo"),
    *(
        (f"blocks.{{}}.mlp.{name}.weight", f"model.layers.{{}}.mlp.{name}_proj.weight")
        for name in ("gate", "up", "down")
    ),
)
THEIR_NAMES = dict(NAMES)


def hf_name(name: str) -> str:
    """Return transformers' name of our parameter `name`, one of a model that is Gemma 3."""
    layer = re.search(r"(?<=^blocks\.)\d+", name)
    return THEIR_NAMES[re.sub(r"(?<=^blocks\.)\d+", "{}", name)].format(layer[0] if layer else "")


def unlike_gemma3(cfg: ModelConfig) -> list[str]:
    """Return the keys whose values Gemma 3 has not; empty for a model that `Gemma3ForCausalLM` computes."""
    others = cfg.further_parts() | ({"engram_enabled": True} if cfg.engram_enabled else {})
    unlike = [name for name, allowed in PARTS.items() if getattr(cfg, name) not in allowed]
    unlike += [name for name in others if name not in PARTS and name not in FREE]
    if cfg.dim % cfg.n_heads:  # which transformers asks for, though heads may be of any width
        unlike.append("n_heads")
    return unlike


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def hf_config(cfg: ModelConfig, vocab_size: int, dtype: str) -> dict[str, Any]:
    """Return config.json of a model that is Gemma 3, but for its special tokens."""
    theirs = {ours: name for name, ours in KINDS.items()}
    bases = {"sliding": cfg.rope_base, "global": cfg.rope_base_global or cfg.rope_base}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": MODEL_TYPE,
        "dtype": dtype,
        "vocab_size": vocab_size,
        "hidden_size": cfg.dim,
        "intermediate_size": cfg.hidden,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_size,
        "query_pre_attn_scalar": cfg.head_size,
        "max_position_embeddings": cfg.max_seq_len,
        "sliding_window": cfg.sliding_window,
        "layer_types": [theirs["global" if cfg.is_global(i) else "sliding"] for i in range(cfg.n_layers)],
        "rope_parameters": {theirs[kind]: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        "rope_theta": bases["global"],  # transformers 4 has the bases by these two names
        "rope_local_base_freq": bases["sliding"],
        "rms_norm_eps": cfg.norm_eps,
        "final_logit_softcapping": cfg.lm_head_logit_cap,
        "initializer_range": cfg.init_std,
        "tie_word_embeddings": cfg.tie_embeddings,
        **FIXED,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def is_hf_folder(path: Path) -> bool:
    """Return whether a folder holds a model of transformers."""
    return path.is_dir() and "model_type" in _read_json(path / "config.json")


def read_config(folder: Path) -> dict[str, Any]:
    """Return our model keys, with their values, that a Gemma 3 folder's config.json says.

    Raises TrainError where it is another architecture, or one of its values is nothing that our model can be.
    """
    config = _read_json(folder / "config.json")
    where = folder / "config.json"
    if config.get("model_type") != MODEL_TYPE:
        raise TrainError(
            f"{where}: model_type {config.get('model_type')!r}; of transformers' folders only {MODEL_TYPE} can be read"
        )
    head_dim = config.get("head_dim", 256)  # defaults are those of transformers' Gemma3TextConfig
    for name, value in (FIXED | {"query_pre_attn_scalar": head_dim}).items():
        default = 256 if name == "query_pre_attn_scalar" else value
        if config.get(name, default) != value:
            raise TrainError(f"{where}: {name} = {config[name]}; our model has {value} and nothing else")
    layers = config.get("num_hidden_layers", 26)
    every = config.get("_sliding_window_pattern", config.get("sliding_window_pattern", 6))
    types = config.get("layer_types") or [[*KINDS][(i + 1) % every == 0] for i in range(layers)]
    return {
        "vocab_size": config.get("vocab_size", 262_208),
        "dim": config.get("hidden_size", 2304),
        "mlp_hidden": config.get("intermediate_size", 9216),
        "n_layers": layers,
        "n_heads": config.get("num_attention_heads", 8),
        "n_kv_heads": config.get("num_key_value_heads", 4),
        "head_dim": head_dim,
        "sliding_window": config.get("sliding_window", 4096),
        "layer_kinds": [KINDS.get(name, name) for name in types],
        "rope_base": _rope_base(config, where, "sliding_attention", "rope_local_base_freq", 1e4),
        "rope_base_global": _rope_base(config, where, "full_attention", "rope_theta", 1e6),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "lm_head_logit_cap": config.get("final_logit_softcapping"),
        "tie_embeddings": config.get("tie_word_embeddings", True),
    }


def _rope_base(config: dict[str, Any], where: Path, kind: str, old_name: str, default: float) -> float:
    """Return a kind's rotary base, as transformers 5 writes it or, `old_name`, as 4 does. Raises TrainError."""
    parameters = (config.get("rope_parameters") or {}).get(kind) or {}
    scaled = config.get("rope_scaling") or parameters.get("rope_type", "default") != "default"
    if scaled:
        raise TrainError(f"{where}: its rotary positions are scaled ({kind}), which our model has not")
    return float(parameters.get("rope_theta", config.get(old_name, default)))


def differing_keys(cfg: ModelConfig, vocab_size: int, theirs: dict[str, Any]) -> list[str]:
    """Return what keeps `cfg` from being the model that `read_config` found: "model.dim (640 there, 512 here)"."""
    ours = {name: getattr(cfg, name) for name in theirs} | {
        "vocab_size": vocab_size,
        "mlp_hidden": cfg.hidden,
        "n_kv_heads": cfg.kv_heads,
        "head_dim": cfg.head_size,
        "layer_kinds": ["global" if cfg.is_global(i) else "sliding" for i in range(cfg.n_layers)],
        "rope_base_global": cfg.rope_base_global or cfg.rope_base,
    }
    wrong = [f"model.{name} ({theirs[name]} there, {ours[name]} here)" for name in theirs if ours[name] != theirs[name]]
    parts = [f"model.{name} ({getattr(cfg, name)} here)" for name in unlike_gemma3(cfg)]
    return parts + wrong


def same_ids(folder: Path, tokenizer: Path) -> bool:
    """Return whether tokens of a Gemma 3 folder have the ids that they have in `tokenizer`, a file of the same name.

    Of a tokenizer.json, what stands in front of a text is not compared: an export puts BOS there, and a manifest does
    so for itself.
    """
    if tokenizer.suffix == ".model":
        path = folder / tokenizer.name
        return path.is_file() and path.read_bytes() == tokenizer.read_bytes()
    theirs, ours = (_read_json(path) for path in (folder / "tokenizer.json", tokenizer))
    return bool(theirs) and all(theirs.get(key) == ours.get(key) for key in ("model", "normalizer", "pre_tokenizer"))


def read_weights(folder: Path, cfg: ModelConfig, vocab_size: int) -> dict[str, Tensor]:
    """Return the weights of a Gemma 3 folder under our names, fp32 on the CPU.

    Raises TrainError where a tensor is missing, too many, or of another shape, or a file cannot be read.
    """
    shapes = {name: parameter.shape for name, parameter in on_meta_device(cfg, vocab_size).named_parameters()}
    index = _read_json(folder / "model.safetensors.index.json").get("weight_map")
    files = sorted(set(index.values())) if index else ["model.safetensors"]
    ours = {hf_name(name): name for name in shapes}
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors = load_file(folder / file)
        except (OSError, SafetensorError) as error:
            raise TrainError(f"{folder / file}: cannot be read: {error}") from None
        for name, tensor in tensors.items():
            if name in ours:
                weights[ours[name]] = tensor.float()
            elif not (name == "lm_head.weight" and cfg.tie_embeddings):  # which repeats the embedding
                raise TrainError(f"{folder / file}: {name} has no place in the model that config.json tells of")
    for name, shape in shapes.items():
        if name not in weights or weights[name].shape != shape:
            found = f"is {tuple(weights[name].shape)}" if name in weights else "is missing"
            raise TrainError(f"{folder}: {hf_name(name)} {found}; it should be {tuple(shape)}")
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    """Return an object of JSON; an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
