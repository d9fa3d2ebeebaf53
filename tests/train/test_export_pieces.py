"""A model packed with a SentencePiece .model leaves as one with a tokenizer.json of the same ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from built import small
from hypothesis import given, settings
from hypothesis import strategies as st
from piece_tokenizers import CORPUS, SPACE
from tokenizers import Tokenizer
from trainer_harness import sets

from stages.tokenizer.sentencepiece_work import train
from train.checkpoint.load_model import open_trained_model
from train.export import main
from train.generate import generate
from train.main import run
from train.tokenizer.convert import converted
from train.tokenizer.pieces import TokenizerError
from train.tokenizer.text import TextTokenizer
from train.tokenizer.vocabulary import for_text

GEMMA = {
    "dim": 32,
    "n_layers": 3,
    "n_heads": 2,
    "n_kv_heads": 1,
    "head_dim": 16,
    "qk_norm": "weighted",
    "mlp": "geglu",
    "max_seq_len": 96,
    "layer_kinds": ["sliding", "sliding", "global"],
    "sliding_window": 8,
    "rope_base_global": 1e6,
    "norm": "one_plus",
    "norm_eps": 1e-6,
    "sandwich_norms": True,
    "embed_scale": "sqrt_dim_rounded",
    "lm_head_logit_cap": None,
    "init_std": 0.3,
    "tie_embeddings": False,  # of tied ones every token is followed by itself
}
TRAIN = {"steps": 3, "batch_size": 8, "seq_len": 48, "log_every": 1, "eval_tokens": 1024, "eval_every": 0}
TEXTS = [f"{n}: {text}" for n in range(20) for text in CORPUS]
KEPT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}


def written(folder: Path, **keys: object) -> Path:
    """A model of the package, with `keys` of its trainer."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(folder / "tokenizer"), minloglevel=2, hard_vocab_limit=False,
        **{"vocab_size": 420, "model_type": "bpe", "byte_fallback": True, **KEPT, **keys},
    )  # fmt: skip
    return folder / "tokenizer.model"


@pytest.fixture(scope="module", params=["ours", "a blank in front", "defined by the user"])
def both(request, tmp_path_factory):
    """The package's model, and the tokenizer.json that is made of it."""
    folder = tmp_path_factory.mktemp("model")
    if request.param == "ours":
        path = folder / "tokenizer.model"
        path.write_bytes(train(TEXTS, 420, "bpe", ["<|user|>"]))
    elif request.param == "a blank in front":
        path = written(folder, add_dummy_prefix=True)
    else:
        path = written(folder, user_defined_symbols=["\n\n", SPACE * 2, "<table>"])
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return theirs, Tokenizer.from_str(for_text(converted(path)))


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(
        st.sampled_from([*CORPUS, " ", "\n", SPACE, "<s>", "<0x41>", "<table>", "aab", "मॉ", "\x07"])
        | st.text(max_size=6)
    ).map("".join)
)
def test_the_tokenizer_json_gives_the_ids_of_the_model(both, text):
    theirs, made = both
    ids = made.encode(text).ids
    assert ids == theirs.encode(text)
    assert made.decode(ids) == text.replace(SPACE, " ")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "unigram"}, "it is no BPE"),
        ({"remove_extra_whitespaces": True}, "it rewrites texts before it cuts them"),
        ({"normalization_rule_name": "nfkc"}, "it rewrites texts"),
        ({"byte_fallback": False}, "it has no byte_fallback"),
        ({"add_dummy_prefix": True, "user_defined_symbols": ["<x>"]}, "defined by its user, and puts a blank in front"),
        ({"treat_whitespace_as_suffix": True, "add_dummy_prefix": True}, "it would differ on"),
    ],
)
def test_models_that_have_none_are_refused_by_reason(tmp_path, keys, message):
    with pytest.raises(TokenizerError, match=f"has no tokenizer.json of the same ids: .*{message}"):
        converted(written(tmp_path, **keys))


@pytest.mark.slow
def test_gemma_with_pieces_leaves_and_writes_the_same_text(tmp_path, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    keys = {"kind": "sentencepiece", "vocab_size": 400, "sample": "1MB"}
    folder = small(tmp_path, tokenizer=keys, model=GEMMA, train={"anneal": TRAIN})
    run(folder, sets(out=str(tmp_path / "run")))
    out = tmp_path / "exported"
    assert main([str(tmp_path / "run"), "--format", "hf", "--out", str(out)]) == 0, capsys.readouterr().err
    assert not list(out.glob("*.py")) and json.loads((out / "config.json").read_text())["model_type"] == "gemma3_text"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert type(theirs) is transformers.Gemma3ForCausalLM
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    trained = open_trained_model(tmp_path / "run")
    ours, bos = TextTokenizer(trained.tokenizer), trained.manifest.tokenizer.bos_id
    prompts = ["the model  ", "a", "  naïve 🙂\n\nहिन्दी"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    ids = [[bos, *ours.encode(prompt)] for prompt in prompts]
    assert [row[mask.bool()].tolist() for row, mask in zip(*batch.values(), strict=True)] == ids
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "eos_token_id": None}
    texts = theirs.generate(**batch, max_new_tokens=50, **greedy)[:, batch["input_ids"].shape[1] :].tolist()
    made = generate(trained.model(torch.device("cpu"), torch.float32), ids, 50, temperature=0)
    assert texts == [list(new) for new in made.ids] and len({i for text in texts for i in text}) > 10
    assert [tokenizer.decode(row[1:]) for row in ids] == prompts == [ours.decode(row[1:], bos) for row in ids]
    # the folder is a start for a run on the same shards
    run(folder, sets(out=str(tmp_path / "again"), init_from=str(out), steps=1))
