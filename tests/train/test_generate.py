"""The cache against the forward pass without one, at every position; and what the choice of tokens promises."""

from __future__ import annotations

import dataclasses
import os

import golf_toy
import pytest
import torch
from commands import python
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_near
from trainer_harness import ROOT, sets

from train import generate as module
from train.config import ModelConfig, TrainError
from train.generate import KVCache, generate, main, sample_token
from train.main import run
from train.model.transformer import build
from train.sealed import read_run_file, run_file_text

CONTEXT = {"max_seq_len": 64}
CFG = ModelConfig(dim=32, n_layers=4, n_heads=2, max_seq_len=64, sliding_window=8, init_std=0.2)
SHAPES = {
    "gemma4": CFG,
    "all_global": dataclasses.replace(CFG, attention_pattern="all_global"),
    "window of one": dataclasses.replace(CFG, sliding_window=1),
    "window above the context": dataclasses.replace(CFG, sliding_window=100),
    "engram": dataclasses.replace(CFG, engram_enabled=True, engram_slots=5, engram_inject_layer=1),
    "untied, no cap": dataclasses.replace(CFG, tie_embeddings=False, lm_head_logit_cap=None),
    "golf S2": dataclasses.replace(golf_toy.S2, init_std=0.2, **CONTEXT),
    "golf S4": dataclasses.replace(golf_toy.S4, init_std=0.2, **CONTEXT),
    "memory, windows": dataclasses.replace(golf_toy.S4, attention_pattern="gemma4", sliding_window=6, **CONTEXT),
    "memory alone": dataclasses.replace(CFG, memory_tokens=3),
    "bigram alone": dataclasses.replace(CFG, bigram_buckets=16, bigram_dim=8),
    "smear, BOS unmixed": dataclasses.replace(CFG, smear=True, smear_bos_mask=True),
    "gemma": dataclasses.replace(
        CFG,
        n_heads=4,
        n_kv_heads=1,
        head_dim=16,
        qk_norm="weighted",
        mlp="geglu",
        norm="one_plus",
        sandwich_norms=True,
        layer_kinds=("sliding", "sliding", "global", "sliding"),
        rope_base_global=1e6,
        embed_scale="sqrt_dim",
    ),
}


def model_of(shape):
    cfg = SHAPES[shape]
    model = build(cfg, golf_toy.V if "golf" in shape else 50, seed=1, bos_id=1).eval()
    if "golf" in shape:
        return golf_toy.fill(model)
    if model.engram is not None:
        torch.nn.init.ones_(model.engram.gate)  # at 0 it does nothing
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():  # what is 0 at first does nothing either
        if not parameter.any():
            parameter.data.normal_(0, 0.2, generator=generator)
    return model


def some_ids(*size, seed=0):
    return torch.randint(0, 50, size, generator=torch.Generator().manual_seed(seed))


def without_cache(model, ids):
    with torch.no_grad():
        states = model.hidden_states(ids, None, memory_in_front=True)
        return model.logits(states.view(*ids.shape, -1))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3), pieces=st.lists(st.integers(1, 20), min_size=1))
@settings(max_examples=12)
def test_every_position_is_that_of_the_pass_without_a_cache(shape, lengths, pieces):
    model, longest = model_of(shape), max(lengths)
    padding = torch.tensor([longest - n for n in lengths])
    ids = some_ids(len(lengths), longest)
    cache = KVCache(model, longest, padding if padding.any() else None)
    got, at, pieces = [], 0, list(pieces)
    while at < longest:  # pieces of these sizes, then ones
        n = pieces.pop(0) if pieces else 1
        got.append(model.logits(cache.read(ids[:, at : at + n])))
        at += n
    result = torch.cat(got, 1)
    for row, skipped in enumerate(padding.tolist()):
        want = without_cache(model, ids[row : row + 1, skipped:])[0]
        assert_near(result[row, skipped:], want)


def test_a_sliding_layer_holds_its_window_and_a_global_one_all():
    model = model_of("gemma4")
    cache = KVCache(model, 40)
    cache.read(some_ids(2, 40))
    assert [layer.keys.shape[2] for layer in cache.layers] == [8, 40, 8, 40]
    assert torch.isfinite(cache.layers[0].keys).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_is_what_the_pass_without_a_cache_chooses(shape, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 16)
    model = model_of(shape)
    prompts = [some_ids(n, seed=n).tolist() for n in (3, 1, 37)]
    made = generate(model, prompts, 20, temperature=0)
    for prompt, new in zip(prompts, made.ids, strict=True):
        ids = list(prompt)
        for _ in range(20):
            ids.append(int(without_cache(model, torch.tensor([ids]))[0, -1].argmax()))
        assert new == ids[len(prompt) :]
    assert (made.prompt_tokens, made.written) == (41, 57) and made.tokens_per_second > 0


def test_a_text_does_not_depend_on_its_company_and_stops():
    model = model_of("gemma4").train()
    prompts = [some_ids(n, seed=n).tolist() for n in (5, 9)]
    free = generate(model, prompts, 12, seed=3)
    assert model.training
    assert generate(model, prompts[:1], 12, seed=3).ids == free.ids[:1]
    assert generate(model, prompts, 12, seed=4).ids != free.ids
    stop = free.ids[0][4]
    cut = generate(model, prompts, 12, stop=stop, seed=3)
    for whole, part in zip(free.ids, cut.ids, strict=True):
        assert part == (whole[: whole.index(stop)] if stop in whole else whole)


def test_texts_end_where_the_rotary_table_does():
    model = model_of("gemma4")
    prompts = [[1] * 60, [1] * 63, [1]]
    made = generate(model, prompts, 8).ids
    assert [len(ids) for ids in made] == [4, 1, 8]
    assert made[:1] == generate(model, prompts[:1], 8).ids  # and those that go on know where they stand
    likeliest = generate(model, prompts, 8, temperature=0).ids[2]
    assert likeliest == generate(model, prompts[2:], 8, temperature=0).ids[0]
    with pytest.raises(TrainError, match=r"a prompt of 64 tokens leaves no room in model\.max_seq_len = 64"):
        generate(model, [[1] * 64], 1)
    with pytest.raises(TrainError, match="no tokens"):
        generate(model, [[1], []], 1)


def test_pick_keeps_the_most_likely_that_hold_top_p():
    logits = torch.log(torch.tensor([0.04, 0.5, 0.3, 0.16])) * 0.7  # undone by the temperature
    assert [sample_token(logits, u) for u in (0.0, 0.5, 0.55, 0.8, 0.999)] == [1, 1, 2, 2, 3]
    assert sample_token(torch.tensor([0.0, 100.0]), 0.999) == 1
    assert sample_token(logits, 0.999, temperature=0) == 1
    assert sample_token(logits / 0.7, 0.999, temperature=1, top_p=1) == 0


@pytest.mark.slow
def test_the_command_continues_prompts_and_says_how_fast(pretrain, tmp_path, capsys):
    run(pretrain, sets(out=str(tmp_path / "r"), steps=2))
    capsys.readouterr()
    more = ["--prompt", "the small", "--prompt", "<|bos|>", "--tokens", "5", "--temperature", "0"]
    assert main([str(tmp_path / "r"), *more]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("the small") and out.count("---") == 2
    # BOS and the characters of each prompt: nine and seven
    assert "2 text(s), 41,376 parameters" in err and "18 tokens read in" in err and "tokens/s" in err
    step = str(tmp_path / "r/checkpoints/step_000002")
    done = python(["-m", "train.generate", step, *more], ROOT)
    assert done.returncode == 0 and done.stdout == out
    assert main([str(tmp_path / "r/checkpoints/step_000002"), "--manifest", str(pretrain), *more]) == 0
    (tmp_path / "link").symlink_to(tmp_path / "r")
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/link").symlink_to(tmp_path)  # whose `..` the system takes from where it leads to
    assert main([str(tmp_path / "link"), *more]) == 0
    facts = tmp_path / "r/run.json"
    written = read_run_file(facts) | {"manifest": os.path.relpath(pretrain, tmp_path / "a/b/link/r")}
    facts.write_text(run_file_text(written))
    assert main([str(tmp_path / "a/b/link/r"), *more]) == 0


def test_what_cannot_be_opened_is_said_in_one_line(pretrain, tmp_path, capsys):
    def says(folder, *more):
        assert main([str(folder), "--prompt", "a", *more]) == 1
        return capsys.readouterr().err

    assert "no checkpoint there; name a run's folder" in says(tmp_path / "nothing")
    folder = tmp_path / "r"
    run(pretrain, sets(out=str(folder), steps=1))
    assert "no such manifest" in says(folder, "--manifest", str(tmp_path / "elsewhere"))
    moved = tmp_path / "deep/er/r"
    moved.parent.mkdir(parents=True)
    folder.rename(moved)
    assert "is not there; give --manifest M" in says(moved)
    assert main([str(moved), "--prompt", "a", "--manifest", str(pretrain)]) == 0
    state = moved / "checkpoints/step_000001/state.json"
    value = read_run_file(state)
    value["identity"]["tokenizer_sha256"] = "0"
    state.write_text(run_file_text(value))
    assert "its tokenizer is not the one" in says(moved, "--manifest", str(pretrain))
    with pytest.raises(SystemExit):
        main([str(moved), "--prompt", "a", "--top-p", "0"])


@pytest.mark.parametrize("prompt", [os.fsdecode(b"caf\xe9"), "\ud800"])
def test_a_prompt_that_is_no_utf8_is_named_and_refused(prompt, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["anywhere", "--prompt", prompt])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    said.encode()
    assert "is no UTF-8 at character" in said
