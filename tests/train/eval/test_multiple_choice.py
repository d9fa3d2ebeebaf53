"""Multiple choice: batched scores are those of one choice at a time, at any number of ranks, and can reach 100 %."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_harness import BOS, MODEL, TRAIN, VOCAB, ended, losses, make_mixture, metrics, sets, start_ranks

from train.config import ModelConfig, TrainError
from train.data.evalset import Item, evalset_text
from train.data.manifest import EvalSet, ManifestError, load_manifest
from train.eval import multiple_choice
from train.eval.multiple_choice import ChoiceScore, MultipleChoice
from train.eval.validation import Score
from train.main import main, run
from train.model.transformer import build

CPU = torch.device("cpu")
MAX_LEN = MODEL["max_seq_len"]
CFG = ModelConfig(**MODEL)


def with_items(folder, **found):
    """The manifest in `folder`, listing a set of items by each name; the file is what `stages` would write."""
    said = []
    for name, items in found.items():
        path = folder / f"eval_{name}.json"
        path.write_text(evalset_text(items))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        said.append(EvalSet(name, path.name, sha256, len(items), "{question}", "jsonl", "", "", "", []))
    manifest = dataclasses.replace(load_manifest(folder), evals=said)
    (folder / "manifest.json").write_text(manifest.to_json())
    return load_manifest(folder)


@torch.no_grad()
def reference_nats(model, item, bos_id):
    """The nats of an item's choices, one after the other."""
    nats = []
    for choice in item.choices:
        ids = torch.tensor([bos_id, *item.prompt, *choice])
        log_p = torch.log_softmax(model.logits(model.text_states(ids[None, :-1]))[0].double(), -1)
        nats.append(-sum(float(log_p[i, ids[i + 1]]) for i in range(len(item.prompt), len(ids) - 1)))
    return nats


@pytest.fixture
def folder(tmp_path):
    """A mixture without evaluation sets, to be given some."""
    return make_mixture(tmp_path / "m", MODEL, {"pretrain": TRAIN}, "pretrain").parent


def questions(seed, n, longest=40, wide=5):
    """Items of random tokens: prompts of up to `longest`, two to five choices of up to `wide`."""
    rng = np.random.default_rng(seed)

    def draw(low, high):
        return rng.integers(0, 256, rng.integers(low, high + 1)).tolist()

    found = []
    for i in range(n):
        options = [draw(1, wide) for _ in range(rng.integers(2, 6))]
        sizes = [int(rng.integers(1, 30)) for _ in options]
        found.append(Item(f"{i:032x}", draw(0, longest), options, sizes, int(rng.integers(len(options)))))
    return found


ITEMS = st.builds(questions, st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 58))


def test_a_score_by_hand():
    one = Item("0", [], [[1], [2]], [1, 4], 0)  # p .5 and .25: the first by sum; by byte .5 against .25 ** .25 = .707
    two = Item("1", [], [[1], [2], [3]], [2, 2, 2], 2)  # p .25, .25, .36: right both ways
    nats = [[math.log(2), math.log(4)], [math.log(4), math.log(4), -math.log(0.36)]]
    found = ChoiceScore.from_nats([one, two], nats)
    assert (found.items, found.acc, found.acc_norm) == (2, 1.0, 0.5)
    assert found.chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    first, second = -math.log(0.5 / (0.5 + 0.25**0.25)), -math.log(0.6 / (0.5 + 0.5 + 0.6))
    assert found.choice_nats == pytest.approx((first + second) / 2)
    assert found.choice_nats_stderr == pytest.approx(abs(first - second) / 2)
    assert (found.acc_stderr, found.acc_norm_stderr) == pytest.approx((0, 0.5))
    assert found.answer_bits_per_byte == pytest.approx((1 + -math.log2(0.36) / 2) / 2)
    alone = ChoiceScore.from_nats([two], nats[1:])
    assert alone.acc == 1 and math.isnan(alone.acc_stderr)
    text = json.dumps(Score(1.0, math.nan, 3, choices={"quiz": alone}).to_dict(), allow_nan=False)
    again = Score.from_dict(json.loads(text))
    assert math.isnan(again.bits_per_byte) and math.isnan(again.choices["quiz"].acc_stderr)
    assert again.choices["quiz"].acc == 1


@pytest.mark.slow
@settings(max_examples=8)
@given(found=ITEMS, more=ITEMS, tokens=st.sampled_from([32, 150, 4096]), world=st.integers(1, 4), tied=st.booleans())
def test_batches_are_the_reference_at_any_number_of_ranks(tmp_path_factory, found, more, tokens, world, tied):
    folder = make_mixture(tmp_path_factory.mktemp("m") / "m", MODEL, {"pretrain": TRAIN}, "pretrain").parent
    manifest = with_items(folder, a=found, b=more)
    model = build(ModelConfig(**MODEL, tie_embeddings=tied, init_std=0.3), VOCAB, 0).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiple_choice, "BATCH_TOKENS", tokens)
        whole = MultipleChoice(manifest, MAX_LEN, 0)
        got = whole.nats(model, CPU)
        ranks = [MultipleChoice(manifest, MAX_LEN, 0, None, rank, world) for rank in range(world)]
        assert np.array_equal(np.sum([c.nats(model, CPU) for c in ranks], 0), got)
    wanted = [reference_nats(model, item, BOS) for item in (*found, *more)]
    np.testing.assert_allclose(got, [nats for item in wanted for nats in item], rtol=1e-5, atol=1e-4)
    score = whole.score(model, CPU)
    assert list(score) == ["a", "b"]
    for name, items, nats in (("a", found, wanted), ("b", more, wanted[len(found) :])):
        expected = dataclasses.asdict(ChoiceScore.from_nats(items, nats[: len(items)]))
        for what in ("items", "chance", "choice_nats", "answer_bits_per_byte"):
            assert dataclasses.asdict(score[name])[what] == pytest.approx(expected[what], rel=1e-4), what


def test_memory_stands_in_front_of_questions(folder):
    items = questions(3, 6)
    model = build(dataclasses.replace(CFG, memory_tokens=4), VOCAB, 0).eval()
    nats = [reference_nats(model, item, BOS) for item in items]
    found = MultipleChoice(with_items(folder, web=items), MAX_LEN, 0).nats(model, CPU)
    np.testing.assert_allclose(found, [value for values in nats for value in values], rtol=1e-5)
    prompt, choice = items[0].prompt, items[0].choices[0]
    ids = torch.tensor([[0] * 4 + [BOS, *prompt, *choice]])
    with torch.no_grad():
        losses = -torch.log_softmax(model.logits(model.trunk(ids[:, :-1], start=4))[0], -1)
    wanted = sum(losses[at - 1, ids[0, at]].item() for at in range(4 + 1 + len(prompt), ids.shape[1]))
    assert nats[0][0] == pytest.approx(wanted, rel=1e-5)


def test_few_lengths_are_run_and_none_beyond_the_models(folder):
    found = MultipleChoice(with_items(folder, a=questions(1, 60, 58)), MAX_LEN, 0)
    model, shapes = build(CFG, VOCAB, 0).eval(), []
    trunk = model.trunk
    model.trunk = lambda ids: (shapes.append(tuple(ids.shape)), trunk(ids))[1]
    found.nats(model, CPU)
    assert {length for _, length in shapes} <= {32, 64} and sum(rows for rows, _ in shapes) == len(found.rows)
    short = MultipleChoice(with_items(folder, a=questions(1, 5, 30)), 37, 0)  # no multiple of 32
    assert max(short._padded_len(row) for row in short.rows) <= 37


@pytest.mark.slow
def test_who_knows_the_answers_gets_all_of_them_right(folder):
    """Questions that look alike and whose right answer is one token or another: learned by heart, then asked."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(24):
        answer = int(rng.integers(3))
        found.append(Item(f"{i:032x}", [i, 7, 9], [[50, 60], [70], [80, 90, 100]], [6, 3, 9], answer))
    asked = MultipleChoice(with_items(folder, a=found), MAX_LEN, 0)
    model = build(CFG, VOCAB, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [[BOS, *item.prompt, *item.choices[item.answer]] for item in found]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    targets = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        targets[i, 3 : len(row) - 1] = ids[i, 4 : len(row)]
    assert asked.score(model.eval(), CPU)["a"].acc < 0.7
    for _ in range(70):
        optimizer.zero_grad()
        F.cross_entropy(model.logits(model.trunk(ids)).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    score = asked.score(model.eval(), CPU)["a"]
    assert (score.acc, score.acc_norm, score.acc_stderr) == (1, 1, 0)
    assert score.choice_nats < 0.7 and score.answer_bits_per_byte < 0.1
    wrong = [dataclasses.replace(item, answer=(item.answer + 1) % 3) for item in found]
    assert MultipleChoice(with_items(folder, a=wrong), MAX_LEN, 0).score(model, CPU)["a"].acc == 0


@pytest.mark.slow
def test_a_fresh_model_is_near_chance(folder):
    found = [dataclasses.replace(item, bytes=[len(c) for c in item.choices]) for item in questions(3, 500, 6)]
    score = MultipleChoice(with_items(folder, a=found), MAX_LEN, 0).score(build(CFG, VOCAB, 0).eval(), CPU)["a"]
    assert abs(score.acc_norm - score.chance) < 4 * score.acc_norm_stderr < 0.1
    assert abs(score.acc - score.chance) < 4 * score.acc_stderr
    chance_nats = np.mean([math.log(len(item.choices)) for item in found])
    assert score.choice_nats == pytest.approx(chance_nats, abs=0.02)


def test_long_prompts_lose_their_beginning_the_same_for_all_choices(folder):
    item = Item("f" * 32, list(range(100)), [[5], [6, 7, 8]], [1, 3], 0)
    asked = MultipleChoice(with_items(folder, a=[item, *questions(1, 3, 5)]), MAX_LEN, 0)
    assert asked.sets["a"][0] == dataclasses.replace(item, prompt=list(range(100 - 61, 100)))
    assert asked.notes == [
        "note: evals.a: the beginning of 1 of 4 prompts is left out, as with a choice they are longer than "
        "model.max_seq_len = 64"
    ]
    assert asked.rows[0].ids[0] == BOS and len(asked.rows[0].ids) == MAX_LEN + 1
    model = build(CFG, VOCAB, 0).eval()
    np.testing.assert_allclose(asked.nats(model, CPU)[:2], reference_nats(model, asked.sets["a"][0], BOS), rtol=1e-5)
    full = dataclasses.replace(item, choices=[[5], [1] * 64])
    assert MultipleChoice(with_items(folder, a=[full]), MAX_LEN, 0).sets["a"][0].prompt == []
    with pytest.raises(TrainError, match=r"evals\.a: item f+ has a choice of 65 tokens, above model.max_seq_len = 64"):
        MultipleChoice(with_items(folder, a=[dataclasses.replace(item, choices=[[5], [1] * 65])]), MAX_LEN, 0)


def test_some_items_are_spread_evenly_and_the_same_each_time(folder):
    found = questions(2, 20)
    manifest = with_items(folder, a=found)
    assert MultipleChoice(manifest, MAX_LEN, 5).sets["a"] == found[::4]
    assert MultipleChoice(manifest, MAX_LEN, 500).sets["a"] == found
    assert MultipleChoice(manifest, MAX_LEN, None).score(build(CFG, VOCAB, 0), CPU) == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), "missing; the manifest names it"),
        (lambda path: path.write_text("{"), "not an evaluation set of ours"),
        (lambda path: path.write_text(path.read_text().replace('"answer": ', '"answer": 9')), "is damaged"),
        (lambda path: path.write_text(path.read_text().replace('"prompt": [', '"prompt": [999, ')), "is damaged"),
        (lambda path: path.write_text(path.read_text().replace('"bytes": [', '"bytes": ["x", ')), "not an evaluation"),
        (lambda path: path.write_text(path.read_text().replace('"format": 1', '"format": 2')), "format 2"),
        (lambda path: path.write_text(evalset_text(questions(2, 4))), "4 items, the manifest says 6"),
        (lambda path: path.write_text(evalset_text(questions(3, 6))), "changed since it was packed"),
    ],
)
def test_a_file_that_is_not_the_manifests_is_an_error(folder, change, said):
    manifest = with_items(folder, a=questions(2, 6))
    change(folder / "eval_a.json")
    with pytest.raises(ManifestError, match=said) as caught:
        MultipleChoice(manifest, MAX_LEN, 0)
    assert len(str(caught.value).splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------------------
# In a run


@pytest.mark.slow
def test_a_run_asks_at_each_evaluation_and_trains_the_same(folder, tmp_path, capsys):
    settings_ = sets(steps=4, eval_every=2, ema__decay=0.5, ema__every=1)
    run(folder, [*settings_, *sets(out=str(tmp_path / "without"))])
    said = (tmp_path / "without/summary.json").read_text() + (tmp_path / "without/metrics.jsonl").read_text()
    assert "acc" not in said and "choices" not in said and "choices" not in capsys.readouterr().out
    with_items(folder, quiz=questions(5, 30))
    run(folder, [*settings_, *sets(out=str(tmp_path / "r"))])
    told = capsys.readouterr().out
    assert losses(tmp_path / "r") == losses(tmp_path / "without")
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    asked = {m["step"]: m for m in metrics(tmp_path / "r") if "quiz/acc" in m}
    assert list(asked) == [0, 2, 4]
    for step, key in ((0, "before"), (4, "after")):
        score = summary[key]["choices"]["quiz"]
        assert Score.from_dict(summary[key]).choices["quiz"].items == 30
        for what in ("acc", "acc_norm", "choice_nats", "answer_bits_per_byte"):
            assert asked[step][f"quiz/{what}"] == score[what]
    assert asked[4]["quiz/choice_nats_ema"] == summary["averages"]["ema"]["choices"]["quiz"]["choice_nats"]
    assert asked[4]["quiz/choice_nats"] != asked[0]["quiz/choice_nats"]
    last = summary["after"]["choices"]["quiz"]
    assert f"choices    acc {100 * last['acc']:.1f} ± " in told and ": quiz, 30 questions" in told
    assert f"choice_nats {last['choice_nats']:.4f}, " in told.split("step 4: quiz: ")[1].split("\n")[0]
    # it may be asked otherwise when a run goes on, and the score before the first step comes back
    (tmp_path / "r/summary.json").unlink()
    run(folder, [*settings_, *sets(out=str(tmp_path / "r"), resume="auto", eval_items=7)])
    again = json.loads((tmp_path / "r/summary.json").read_text())
    assert again["before"] == summary["before"] and again["after"]["choices"]["quiz"]["items"] == 7
    run(folder, [*settings_, *sets(out=str(tmp_path / "none"), eval_items="null")])
    assert "quiz" not in (tmp_path / "none/metrics.jsonl").read_text()


@pytest.mark.slow
def test_two_processes_get_the_score_of_one(folder, launch, tmp_path):
    with_items(folder, quiz=questions(6, 40), more=questions(7, 9))
    settings_ = sets(steps=1, checkpoint_every=0, eval_tokens=64)
    ranks = start_ranks(launch, 2, folder / "manifest.json", [*settings_, *sets(out=str(tmp_path / "two"))])
    run(folder, [*settings_, *sets(out=str(tmp_path / "one"))])
    ended(ranks)
    two, one = (json.loads((tmp_path / n / "summary.json").read_text())["before"]["choices"] for n in ("two", "one"))
    assert list(two) == list(one) == ["quiz", "more"]
    for name, score in one.items():
        assert two[name] == pytest.approx(score, rel=1e-6)  # they may use other numbers of threads


def test_errors_are_for_people(folder, capsys):
    with_items(folder, a=questions(2, 6))
    (folder / "eval_a.json").write_text("{")
    assert main(["--manifest", str(folder)]) == 1
    assert "eval_a.json: not an evaluation set of ours" in capsys.readouterr().err
    with_items(folder, a=[])
    assert main(["--manifest", str(folder)]) == 1
    assert "evals.a has no questions; pack again" in capsys.readouterr().err
    assert main(["--manifest", str(folder), "--set", "train.eval_items=-1"]) == 2
    assert "train.eval_items = -1" in capsys.readouterr().err
