"""A trained model in the forms that others load.

    python -m train.export runs/a --format hf --out exported/a
    safetensors   model.safetensors under our names, config.json, tokenizer.json
    card          the seed card's layout: models/model.pt ({"cfg", "model", "step"}, torch.load(weights_only=True)),
                  models/tokenizer.json, and code/ to load them; cfg has the keys of the seed's Config
    hf            a Hugging Face folder: AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True); a model
                  with Gemma 3's parts is transformers' own Gemma3ForCausalLM, which needs no trust
    llama, qwen2, qwen3   a folder for transformers' own classes, which need no trust, of a model that is one
    gguf          model.gguf for llama.cpp, of a model that is a Llama or a Qwen3

Each is fp32 unless --dtype says bfloat16, which halves it; logits are those of the run in the same dtype. A text begins
with BOS and ends where the next one would begin, so BOS is the end-of-text token too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from train import export_llama
from train.checkpoint import gemma3
from train.checkpoint.load_model import TrainedModel, add_model_arguments, model_from_arguments
from train.config import ModelConfig, TrainError
from train.data.manifest import ManifestError, Tokenizer
from train.exit_status import complain, run_command
from train.export_readme import bos_name, readme
from train.export_seed_card import Config as SeedConfig
from train.generate import TEMPERATURE, TOP_P
from train.keys import keys_fixed_by_weights
from train.tokenizer.convert import converted
from train.tokenizer.pieces import SUFFIX, TokenizerError

HERE = Path(__file__).parent
MODELING = "modeling_shard"  # what export_hf_model.py is called in an export, as transformers wants it
# What export_seed_card.py imports, below train/
CARD_MODULES = ("__init__.py", "keys.py", "model/*.py")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Our parameter names as the Hugging Face file has them, which are Llama's where Llama has the part
HF_NAMES = (
    (r"embed\.weight", "model.embed_tokens.weight"),
    (r"head\.weight", "lm_head.weight"),
    (r"norm\.weight", "model.norm.weight"),
    (r"blocks\.(\d+)\.attn_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (r"blocks\.(\d+)\.mlp_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"blocks\.(\d+)\.attn\.([qkvo])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (r"blocks\.(\d+)\.attn\.([qk])_norm\.weight", r"model.layers.\1.self_attn.\2_norm.weight"),
    (r"blocks\.(\d+)\.mlp\.(gate|up|down)\.weight", r"model.layers.\1.mlp.\2_proj.weight"),
    (r"engram\.(norm\.weight|keys|values|gate)", r"model.engram.\1"),
)


def hf_name(name: str) -> str:
    """Return the Hugging Face name of our parameter `name`. Raises TrainError for one that its file has not."""
    for pattern, replacement in HF_NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    raise TrainError(
        f"parameter {name} has no place in train/export_hf_model.py; add it there, and to HF_NAMES in train/export.py"
    )


def is_gemma3(cfg: ModelConfig, dtype: str) -> bool:
    """Return whether a model is exported as Gemma 3, and not as Shard. Raises TrainError where it is neither."""
    unlike_shard, unlike_gemma3 = cfg.further_parts(), gemma3.unlike_gemma3(cfg)
    if not unlike_shard:
        return False
    if unlike_gemma3:
        raise TrainError(
            f"the Hugging Face form has no {_model_keys(unlike_shard)}, and Gemma 3 is another model by "
            f"{_model_keys(unlike_gemma3)}; choose --format safetensors"
        )
    if cfg.embed_scale == "sqrt_dim" and dtype == "bfloat16":
        raise TrainError(
            "in bfloat16 Gemma 3 rounds what it multiplies embeddings by, this model does not (model.embed_scale = "
            "sqrt_dim): its logits would be others; choose --dtype float32"
        )
    return True


def _model_keys(names: Iterable[str]) -> str:
    return ", ".join(f"model.{name}" for name in names)


def hf_config(cfg: ModelConfig, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """Return config.json for transformers. Raises TrainError for a model that the Hugging Face form cannot be."""
    if is_gemma3(cfg, dtype):
        return gemma3.hf_config(cfg, tokenizer.vocab_size, dtype) | special_ids(tokenizer)
    kinds = {True: "full_attention", False: "sliding_attention"}
    return {
        "architectures": ["ShardForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{MODELING}.ShardConfig",
            "AutoModelForCausalLM": f"{MODELING}.ShardForCausalLM",
        },
        "model_type": "shard",
        "dtype": dtype,
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": cfg.dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "intermediate_size": cfg.hidden,
        "max_position_embeddings": cfg.max_seq_len,
        "sliding_window": cfg.sliding_window,
        "layer_types": [kinds[cfg.is_global(layer)] for layer in range(cfg.n_layers)],
        "rope_theta": cfg.rope_base,
        "rms_norm_eps": cfg.norm_eps,
        "final_logit_softcapping": cfg.lm_head_logit_cap,
        "engram_slots": cfg.engram_slots if cfg.engram_enabled else 0,
        "engram_inject_layer": cfg.engram_inject_layer,
        "residual_dropout": cfg.dropout,
        "initializer_range": cfg.init_std,
        "tie_word_embeddings": cfg.tie_embeddings,
        **special_ids(tokenizer),
    }


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of BOS, which ends texts too, and of padding."""
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}


def hf_tokenizer_config(tokenizer: Tokenizer, max_seq_len: int | None) -> dict[str, Any]:
    """Return tokenizer_config.json. Padding goes in front, where generation wants it. max_seq_len: None: no limit."""
    names = {i: name for name, i in tokenizer.special_ids.items()}
    others = [names[i] for i in sorted(names) if i not in (tokenizer.bos_id, tokenizer.pad_id)]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[tokenizer.bos_id],
        "eos_token": names[tokenizer.bos_id],
        "pad_token": names[tokenizer.pad_id],
        **({"additional_special_tokens": others} if others else {}),
        "padding_side": "left",
        **({} if max_seq_len is None else {"model_max_length": max_seq_len}),
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


def tokenizer_definition(path: Path) -> dict[str, Any]:
    """Return the tokenizer at `path` as a tokenizer.json. Raises TrainError for a model that has none of its ids."""
    if path.suffix != SUFFIX:
        definition: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return definition
    try:
        return converted(path)
    except TokenizerError as error:
        raise TrainError(f"{error}; --format safetensors takes the model as it is") from None


def hf_tokenizer(path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return tokenizer.json whose texts begin with BOS, as in training, where it stands in front of each."""
    value = tokenizer_definition(path)
    bos = bos_name(tokenizer)

    def behind_bos(sequence: str, type_id: int) -> list[dict[str, Any]]:
        parts = {"SpecialToken": bos, "Sequence": sequence}
        return [{kind: {"id": i, "type_id": type_id}} for kind, i in parts.items()]

    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": behind_bos("A", 0),
        "pair": behind_bos("A", 0) + behind_bos("B", 1),
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }
    return value


def seed_config(trained: TrainedModel) -> dict[str, Any]:
    """Return the keys of the seed's Config (export_seed_card.py) and no others, so that Config(**cfg) takes them.

    Raises TrainError for a model that these keys cannot describe.
    """
    cfg, train = trained.cfg, trained.point.state["identity"]["train"]
    seed_keys = {field.name for field in dataclasses.fields(SeedConfig)}
    for name in keys_fixed_by_weights(ModelConfig):
        if name not in seed_keys and getattr(cfg, name) != getattr(ModelConfig(), name):
            raise TrainError(f"the seed's layout has no model.{name}; choose --format hf or safetensors")
    schedule = train["schedule"]
    decay = 0.0 if schedule["kind"] == "constant" else schedule["decay_frac"]
    if schedule["kind"] == "warmdown":
        decay = min(1.0, schedule["warmdown"] / max(1, trained.point.step - schedule["warmup"]))
    return {
        **{name: value for name, value in vars(cfg).items() if name in seed_keys},
        "vocab_size": trained.manifest.tokenizer.vocab_size,
        "head_dim": cfg.head_size,
        "mlp_hidden": cfg.hidden,
        "optimizer": train["optimizer"],
        # the seed has these two kinds; the others are WSDs that do not decay, or without a warm-up
        "lr_schedule": "cosine" if schedule["kind"] == "cosine" else "wsd",
        "wsd_decay_frac": decay,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Writing. Each form fills an empty folder


def write_safetensors(trained: TrainedModel, weights: dict[str, Tensor], dtype: str, out: Path) -> None:
    """Write model.safetensors, config.json, tokenizer.json."""
    tokenizer = trained.manifest.tokenizer
    config = {
        "model": dataclasses.asdict(trained.cfg) | {"vocab_size": tokenizer.vocab_size},
        "dtype": dtype,
        **special_ids(tokenizer),
        "trained": trained.provenance(),
    }
    save_file(weights, out / "model.safetensors")
    write_json(out / "config.json", config)
    shutil.copyfile(trained.tokenizer, out / trained.tokenizer.name)


def write_card(trained: TrainedModel, weights: dict[str, Tensor], dtype: str, out: Path) -> None:
    """Write models/model.pt, models/tokenizer.json, and in code/ what the card imports with what that imports."""
    (out / "models").mkdir()
    value = {"cfg": seed_config(trained), "model": weights, "step": trained.point.step, "trained": trained.provenance()}
    torch.save(value, out / "models/model.pt")
    if trained.tokenizer.suffix == SUFFIX:
        write_definition(out / "models/tokenizer.json", tokenizer_definition(trained.tokenizer))
    else:
        shutil.copyfile(trained.tokenizer, out / "models/tokenizer.json")
    (out / "code/train/model").mkdir(parents=True)
    for path in (path for pattern in CARD_MODULES for path in HERE.glob(pattern)):
        shutil.copyfile(path, out / "code/train" / path.relative_to(HERE))
    shutil.copyfile(HERE / "export_seed_card.py", out / "code/model.py")
    for module, name in (("config", "Config"), ("tokenizer", "load_tokenizer")):
        (out / f"code/{module}.py").write_text(f'from model import {name}\n\n__all__ = ["{name}"]\n')


def write_hf(trained: TrainedModel, weights: dict[str, Tensor], dtype: str, out: Path) -> None:
    """Write the folder of a Shard, with its code, or of a Gemma 3."""
    config = hf_config(trained.cfg, trained.manifest.tokenizer, dtype)
    has_code = not is_gemma3(trained.cfg, dtype)
    named = {(hf_name if has_code else gemma3.hf_name)(name): w for name, w in weights.items()}
    write_folder(trained, named, config, out, has_code)
    if has_code:
        shutil.copyfile(HERE / "export_hf_model.py", out / f"{MODELING}.py")


def write_as(kind: str, trained: TrainedModel, weights: dict[str, Tensor], dtype: str, out: Path) -> None:
    """Write the folder of one of the classes of train/export_llama.py."""
    tokenizer = trained.manifest.tokenizer
    config = export_llama.hf_config(trained.cfg, tokenizer.vocab_size, dtype, kind) | special_ids(tokenizer)
    named = export_llama.with_biases({hf_name(name): w for name, w in weights.items()}, kind)
    write_folder(trained, named, config, out, has_code=False)


def write_folder(
    trained: TrainedModel, named: dict[str, Tensor], config: dict[str, Any], out: Path, has_code: bool
) -> None:
    """Write all that AutoModelForCausalLM and AutoTokenizer ask for, and how the run's samples were drawn."""
    tokenizer = trained.manifest.tokenizer
    save_file(named, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", {**config, "trained": trained.provenance()})
    drawn = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}
    write_json(out / "generation_config.json", {**special_ids(tokenizer), **drawn})
    write_tokenizer(trained.tokenizer, tokenizer, trained.cfg.max_seq_len, out)
    if trained.tokenizer.suffix == SUFFIX:  # train.init_from knows its tokenizer by this file
        shutil.copyfile(trained.tokenizer, out / trained.tokenizer.name)
    (out / "README.md").write_text(readme(trained, has_code), encoding="utf-8")


def write_tokenizer(path: Path, tokenizer: Tokenizer, max_seq_len: int | None, out: Path) -> None:
    """Write the tokenizer at `path` as AutoTokenizer opens it. Raises TrainError for one that has no such form."""
    write_definition(out / "tokenizer.json", hf_tokenizer(path, tokenizer))
    write_json(out / "tokenizer_config.json", hf_tokenizer_config(tokenizer, max_seq_len))


def write_gguf(trained: TrainedModel, weights: dict[str, Tensor], dtype: str, out: Path) -> None:
    """Write model.gguf."""
    definition, origin = tokenizer_definition(trained.tokenizer), trained.provenance()
    name = f"{origin['name']} {origin['phase']} {origin['step']}"
    export_llama.write_gguf(weights, trained.cfg, trained.manifest.tokenizer, definition, name, out / "model.gguf")


FORMATS: dict[str, Callable[[TrainedModel, dict[str, Tensor], str, Path], None]] = {
    "safetensors": write_safetensors,
    "card": write_card,
    "hf": write_hf,
    **{kind: functools.partial(write_as, kind) for kind in export_llama.ARCHITECTURES},
    "gguf": write_gguf,
}


def export(trained: TrainedModel, form: str, out: Path, dtype: str = "float32") -> None:
    """Write `trained` as `form` into the new folder `out`, whole or not at all. Raises TrainError when it is there."""
    if out.exists():
        raise TrainError(f"{out} is there already and is never overwritten; choose another --out")
    weights = {name: w.to(DTYPES[dtype]) for name, w in trained.weights().items()}
    unfinished = out.with_name(f".part-{out.name}-{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        FORMATS[form](trained, weights, dtype, unfinished)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_definition(path: Path, definition: dict[str, Any]) -> None:
    """Write a tokenizer.json, whose order has a meaning."""
    path.write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m train.export", description="Write a trained model for others")
    add_model_arguments(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="hf, llama, qwen2, qwen3: for transformers; gguf: for llama.cpp; card: the seed's layout",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        trained = model_from_arguments(given)
        export(trained, given.format, given.out, given.dtype)
    except (TrainError, ManifestError, OSError) as error:
        return complain(error)
    print(f"{trained.point.folder} as {given.format}, {given.dtype}:")
    for path in sorted(p for p in given.out.rglob("*") if p.is_file()):
        print(f"  {path}  {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    run_command(main)
