"""Runs compared: real runs of a tiny model over two sources, whose rows are then drawn from and changed."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import math
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainer_harness import sets, text, write_manifest, write_shard

from pipeline.commands.compare import left_out_lines, p_text, print_compared, sentence
from pipeline.errors import UserError
from pipeline.report.comparison import write_page
from stages.compare.compare import ALL, FEWEST, Side, common_documents, compare, row_of_set, rows_of_documents, sides_of
from stages.compare.scored import ScoredRun, open_scored
from stages.compare.stats import combine, pooled, ratio, with_seeds
from stages.errors import DataError
from stages.pack.format import ROWS
from train.data.manifest import Shard
from train.main import run

MODEL = {"dim": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64, "sliding_window": 16}
OPTIONS = {
    **{"steps": 100, "batch_size": 8, "seq_len": 32, "eval_tokens": 0, "eval_every": 0, "checkpoint_every": 0},
    **{"sample_tokens": 0, "schedule__warmup": 10, "epochs": 99, "log_every": 50, "muon__lr": 0.01, "adamw__lr": 0.01},
}
SEEDS = 8
DOCUMENTS = 60  # held out of each source


def documents(name: str, count: int, salt: int) -> list[bytes]:
    """Texts of one source, of unlike lengths: `web` of words, `maths` of figures."""
    rng = random.Random(salt)
    if name == "web":
        return [text(salt + i, rng.randint(4, 60)) for i in range(count)]
    return [" ".join(str(rng.randint(0, 99) ** 2) for _ in range(rng.randint(5, 60))).encode() for i in range(count)]


def with_rows(folder: Path, shard: Shard, texts: list[bytes], names: list[str]) -> None:
    """The rows table of a shard whose documents are of the sources `names`."""
    starts = np.cumsum([0] + [len(t) + 1 for t in texts])
    rows = [
        {
            **{"token_start": int(starts[i]), "token_count": len(t) + 1, "source": names[i], "source_file": "f"},
            **{"document_id": hashlib.blake2b(t, digest_size=16).digest(), "source_row": i, "url": None},
            **{"copy": 0, "part": 0, "truncated": False},
        }
        for i, t in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(rows, ROWS), folder / shard.rows)


def mixture(folder: Path, held_out: dict[str, list[bytes]]) -> Path:
    folder.mkdir(parents=True)
    train = [*documents("web", 40, 0), *documents("maths", 40, 1000)]
    shards = [write_shard(folder, "m_train_000000", "train", train)]
    with_rows(folder, shards[0], train, ["web"] * 40 + ["maths"] * 40)
    both = [t for texts in held_out.values() for t in texts]
    shards.append(write_shard(folder, "m_val_000000", "val", both))
    with_rows(folder, shards[1], both, [name for name, texts in held_out.items() for _ in texts])
    for number, (name, texts) in enumerate(held_out.items(), 1):
        shard = write_shard(folder, f"m_val_{number:06d}", "val", texts)
        with_rows(folder, shard, texts, [name] * len(texts))
        shards.append(dataclasses.replace(shard, source=name))
    return write_manifest(folder, shards, MODEL, {"pretrain": {"seq_len": 32}}, "pretrain")


HELD_OUT = {name: documents(name, DOCUMENTS, 5000 + i) for i, name in enumerate(("web", "maths"))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, list[str]]:
    """Runs with Muon and with AdamW, by seed."""
    home = tmp_path_factory.mktemp("runs")
    path = mixture(home / "tiny" / "pretrain", HELD_OUT)
    found: dict[str, list[str]] = {"muon": [], "adamw": []}
    for rule, seeds in (("muon", SEEDS), ("adamw", 3)):
        for seed in range(seeds):
            out = home / f"{rule}_s{seed}"
            run(path, sets(**OPTIONS, optimizer=rule, seed=seed, out=str(out)))
            found[rule].append(str(out))
    return found


@pytest.fixture(scope="module")
def runs(folders) -> dict[str, list[ScoredRun]]:
    return {rule: [open_scored(folder) for folder in names] for rule, names in folders.items()}


def side(letter: str, *runs: ScoredRun) -> Side:
    return Side(letter, runs)


def test_rows_add_up_to_the_scores_of_the_run(folders, runs):
    for folder, scored in zip(folders["muon"], runs["muon"], strict=True):
        after = json.loads((Path(folder) / "summary.json").read_text())["after"]
        for name, score in after["sources"].items():
            own = [d for d in scored.documents.values() if d.source == name]
            assert len(own) == DOCUMENTS and sum(d.bytes for d in own) == score["bytes"]
            assert sum(d.nats for d in own) == pytest.approx(score["nats"] * score["tokens"], rel=1e-9)


def test_a_document_is_scored_by_its_own_tokens(folders, runs):
    """One whose text is learned has fewer bits a byte than one of the same length that is not."""
    bits = {"web": [], "maths": []}
    for document in runs["muon"][0].documents.values():
        bits[document.source].append(document.nats / document.bytes)
    assert np.std(bits["web"]) > 0 and abs(np.mean(bits["web"]) - np.mean(bits["maths"])) > 0.05
    key = hashlib.blake2b(HELD_OUT["web"][7], digest_size=16).digest(), 0
    assert runs["muon"][0].documents[key].bytes == len(HELD_OUT["web"][7])


def test_muon_and_adamw_differ_and_which_is_said(runs, folders, capsys):
    (compared,) = compare(sides_of([[r] for r in (*runs["muon"][:3], *runs["adamw"])]), 0.005)
    assert [len(s.runs) for s in (compared.a, compared.b)] == [3, 3]
    assert [name for name, *_ in compared.changed] == ["train.optimizer"]
    row = compared.row("all")
    means = [
        np.mean([json.loads((Path(f) / "summary.json").read_text())["after"]["bits_per_byte"] for f in names])
        for names in (folders["muon"][:3], folders["adamw"])
    ]
    assert row.verdict_recipes == "different" and row.recipes is not None
    assert row.documents.value == pytest.approx(means[1] - means[0], rel=0.05)  # BOS at document ends counts elsewhere
    print_compared([*folders["muon"][:3], *folders["adamw"]], 0.005, None, as_json=False)
    said = capsys.readouterr().out
    assert f"B is {'better' if row.documents.value < 0 else 'worse'} over all by {abs(row.documents.value):.4f}" in said
    assert "train.optimizer: muon -> adamw" in said and said.count("f row ") == 3
    print_compared([*folders["muon"][:3], *folders["adamw"]], 0.005, None, as_json=True)
    value = json.loads(capsys.readouterr().out)
    assert value["documents"] == 2 * DOCUMENTS and len(value["movers"]) == 3
    assert {r["name"]: r["recipes"]["value"] for r in value["rows"]}["all"] == row.documents.value


def test_the_page_shows_what_is_printed(folders, runs, tmp_path, capsys):
    odd = tmp_path / "<b>s9"  # a name that is markup
    shutil.copytree(folders["adamw"][0], odd)
    names = [",".join(folders["muon"][:3]), ",".join([*folders["adamw"][1:], str(odd)])]
    found = print_compared(names, 0.005, None, as_json=False)
    printed = capsys.readouterr().out
    page = tmp_path / "page"
    write_page(found, 0.005, page)
    text = (page / "index.html").read_text()
    verdict = printed[printed.index("\nrecipes ") + len("\nrecipes ") :]
    assert html.escape(" ".join(verdict.split())) in re.sub("</?code>", "`", text)
    for row in found[0].rows:
        assert f"<td>{row.a:.4f}</td><td>{row.b:.4f}</td>" in text
    assert "train.optimizer" in text and text.count('<details class="doc"') == len(found[0].movers) == 3
    assert all(
        html.escape(HELD_OUT[m.source][place_of(m.key[0], m.source)].decode()[:60]) in text for m in found[0].movers
    )
    curves = re.findall(r'<polyline class="(line[^"]*)"', text)
    assert len(curves) == 6 * 3 and curves.count("line") == curves.count("line hot")  # of all text and two sources
    assert "<b>s9" not in text and "&lt;b&gt;s9" in text
    assert "default-src 'none'" in text and not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    assert {path.name for path in page.iterdir()} == {"index.html", "report.css", "report.js"}
    write_page(found, 0.005, page)
    assert (page / "index.html").read_text() == text
    (page / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else than a page of `compare`; name another"):
        write_page(found, 0.005, page)


def place_of(document_id: bytes, source: str) -> int:
    """The place of a document among those held out of its source."""
    return [hashlib.blake2b(t, digest_size=16).digest() for t in HELD_OUT[source]].index(document_id)


def test_runs_of_one_recipe_are_hardly_ever_called_different(runs):
    """20 pairs of three seeds each. By documents alone a third of them would be."""
    rng, recipes, weights = random.Random(0), 0, 0
    for _ in range(20):
        six = rng.sample(runs["muon"], 6)
        (compared,) = compare([side("A", *six[:3]), side("B", *six[3:])], 0.005)
        recipes += any(row.verdict_recipes == "different" for row in compared.rows)
        weights += any(row.verdict_documents == "different" for row in compared.rows)
    assert recipes <= 2
    assert weights >= 5, "the test could not fail"


def planted(scored: ScoredRun, source: str, bits_a_byte: float) -> ScoredRun:
    rows = {
        key: dataclasses.replace(d, nats=d.nats + bits_a_byte * np.log(2) * d.bytes) if d.source == source else d
        for key, d in scored.documents.items()
    }
    return dataclasses.replace(scored, documents=rows)


@pytest.mark.parametrize("source", ["web", "maths"])
def test_a_difference_planted_in_one_source_is_found_there_alone(runs, source):
    a, b = runs["muon"][:4], [planted(r, source, 0.15) for r in runs["muon"][4:]]
    (compared,) = compare([side("A", *a), side("B", *b)], 0.005)
    assert {row.name for row in compared.rows if row.kind == "source" and row.verdict_recipes == "different"} == {
        source
    }
    found = compared.row(source).recipes
    assert found is not None and found.interval()[0] < 0.15 < found.interval()[1]


def test_a_source_of_few_documents_has_no_interval_and_no_verdict_but_counts_in_all(runs):
    def short(run: ScoredRun, count: int) -> ScoredRun:
        own = [key for key, document in sorted(run.documents.items()) if document.source == "maths"]
        return dataclasses.replace(run, documents={k: d for k, d in run.documents.items() if k not in own[count:]})

    for count, known in ((FEWEST - 1, False), (FEWEST, True)):
        sides = [
            side(letter, *(short(r, count) for r in runs[rule])) for letter, rule in (("A", "muon"), ("B", "adamw"))
        ]
        (compared,) = compare(sides, 0.005)
        row, both = compared.row("maths"), compared.row(ALL)
        assert row.n == count and math.isfinite(row.documents.interval()[0]) == known
        assert (row.verdict_recipes == "different") == known and (p_text(row, True) != "-") == known
        assert math.isfinite(both.documents.interval()[0]) and both.verdict_recipes == "different"
        said = [line for line in left_out_lines(compared) if "without an interval of its own: maths" in line]
        assert len(said) == (not known) and ("maths" in sentence(compared, 0.005, recipes=True)) == known


@pytest.mark.parametrize("count", [3, 5])
def test_intervals_cover_in_draws_from_real_rows(runs, count):
    """Documents are drawn again, seeds are drawn from what is left when each run's own mean is all that differs."""
    common = common_documents(side("A", *runs["muon"]), side("B", *runs["adamw"]))
    size, own = common.bytes, [common.source == s for s in range(2)]
    x = common.bits_b.mean(0) - common.bits_a.mean(0)
    weights = [float(size[rows].sum() / size.sum()) for rows in own]
    truth = sum(w * x[rows].sum() / size[rows].sum() for w, rows in zip(weights, own, strict=True))
    deviation = pooled((common.bits_a.sum(1) / size.sum()).tolist())
    assert deviation is not None
    rng, inside, tokens = np.random.default_rng(count), 0, 0
    draws = 1000
    for _ in range(draws):
        seeds = rng.normal(0, deviation.value, (2, count))
        shift = float(seeds[1].mean() - seeds[0].mean())
        parts = []
        for w, rows in zip(weights, own, strict=True):
            drawn = rng.choice(np.flatnonzero(rows), DOCUMENTS)
            parts.append((w, ratio(x[drawn] + shift * size[drawn], size[drawn])))
        both = pooled(*seeds.tolist())
        assert both is not None
        low, high = with_seeds(combine(parts), both, count, count).interval()
        inside += low <= truth <= high
        low, high = combine(parts).interval()
        tokens += low <= truth <= high
    assert 0.93 <= inside / draws <= 0.97
    assert tokens < inside, "documents alone leave the seeds out"


def test_one_run_a_side_says_nothing_of_recipes_unless_a_deviation_is_kept(folders, tmp_path, capsys):
    one = [folders["muon"][0], folders["adamw"][0]]
    print_compared(one, 0.005, None, as_json=False)
    assert "recipes   Cannot tell: A and B are one run each" in capsys.readouterr().out
    kept = str(tmp_path / "deviations.json")
    print_compared([",".join(folders["muon"][:4]), ",".join(folders["adamw"])], 0.005, kept, as_json=False)
    capsys.readouterr()
    print_compared(one, 0.005, kept, as_json=True)
    value = json.loads(capsys.readouterr().out)
    assert value["stored_deviation"] and all(row["recipes"] for row in value["rows"])
    df = {row["name"]: row["seeds"]["df"] for row in value["rows"]}
    assert df == {"web": 5, "maths": 5, "all": 5}


def test_other_documents_are_left_out_or_refused_by_name(folders, runs, tmp_path):
    a, b = runs["muon"][0], runs["adamw"][0]
    keys = sorted(b.documents)
    some = dataclasses.replace(b, documents={key: b.documents[key] for key in keys[:50]})
    short = dict(some.documents)
    short[keys[0]] = dataclasses.replace(short[keys[0]], bytes=short[keys[0]].bytes - 1)
    (compared,) = compare([side("A", a), side("B", dataclasses.replace(some, documents=short))], 0.005)
    assert compared.documents == 49 and compared.left_out == (70, 0, 1)
    none = dataclasses.replace(b, documents={(b"x" * 16, 0): next(iter(b.documents.values()))})
    with pytest.raises(DataError, match="cannot be compared: they have no document in common"):
        compare([side("A", a), side("B", none)], 0.005)
    with pytest.raises(DataError, match="neither the folder of a run nor a manifest"):
        open_scored(str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(folders["muon"][0], copy)
    (copy / "evaluation.npz").unlink()
    with pytest.raises(DataError, match=r"has no evaluation.npz.*python -m train.score .*copy --rows"):
        open_scored(str(copy))
    (copy / "evaluation.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"evaluation.npz: damaged.*--rows"):
        open_scored(str(copy))


def test_a_run_is_scored_again_with_the_same_rows(folders, runs, capsys):
    from train import score

    folder = Path(folders["muon"][0])
    before = runs["muon"][0].documents
    assert score.main([str(folder), "--rows", "--tokens", "0"]) == 0
    again = open_scored(str(folder)).documents
    assert again.keys() == before.keys()
    assert all(again[key].nats == pytest.approx(d.nats, rel=1e-5) for key, d in before.items())


def test_a_manifest_stands_for_the_run_trained_on_it_and_lone_documents_are_said(folders, runs, tmp_path, capsys):
    home = tmp_path / "build" / "tiny"
    path = mixture(home / "pretrain", {"web": HELD_OUT["web"], "maths": HELD_OUT["maths"][:1]})
    with pytest.raises(DataError, match=r"(?s)no run was trained on it at .*train/pretrain.*pipeline diff A B"):
        open_scored(str(path))
    run(path, sets(**{**OPTIONS, "steps": 20}, out=str(home / "train" / "pretrain")))
    print_compared([folders["muon"][0], str(path.parent)], 0.005, None, as_json=False)
    said = capsys.readouterr().out
    assert f"left out: {DOCUMENTS - 1} scored by A alone, 0 by B alone" in said
    assert "weights   Different: B is worse on web by" in said
    assert "Cannot tell over all: of maths one document alone" in said
    assert "data.build_id" not in said and "train.steps: 100 -> 20" in said


def test_documents_of_one_work_are_one_cluster():
    from train.eval.rows import cluster_of

    a, b = b"a" * 16, b"b" * 16
    assert cluster_of(a, "https://x/book.md#part-1") == cluster_of(b, "https://x/book.md#part-2")
    assert cluster_of(a, "https://x/data.jsonl#L1") != cluster_of(b, "https://x/data.jsonl#L2")
    assert cluster_of(a, None) == cluster_of(a, "") != cluster_of(b, None)


def test_questions_are_paired(runs):
    rng = np.random.default_rng(0)
    level = rng.normal(2, 0.5, 200)

    def answered(scored: ScoredRun, better: float) -> ScoredRun:
        bits = level - better + rng.normal(0, 0.05, 200)
        rows = {f"{i:032x}": np.array([float(bits[i] < 2), 0.0, 1.0, bits[i]]) for i in range(200)}
        return dataclasses.replace(scored, items={"exam": rows})

    a = side("A", *(answered(r, 0.0) for r in runs["muon"][:2]))
    b = side("B", *(answered(r, 0.1) for r in runs["muon"][2:4]))
    row = row_of_set("exam", a, b, {})
    assert row is not None and row.documents.value == pytest.approx(-0.1, abs=0.02)
    assert row.documents.error < 0.01, "unpaired it would be .035"
    assert row.right is not None and row.right.value > 0 and row.n == 200
    assert row_of_set("exam", a, side("B", runs["muon"][0]), {}) is None
    assert len(rows_of_documents(common_documents(a, b), {})) == 3


def test_a_source_may_be_called_all(runs):
    def renamed(scored: ScoredRun) -> ScoredRun:
        rows = {key: dataclasses.replace(d, source="all") for key, d in scored.documents.items() if d.source == "web"}
        return dataclasses.replace(scored, documents={**scored.documents, **rows})

    a, b = ([renamed(r) for r in planted_runs] for planted_runs in (runs["muon"][:3], runs["adamw"]))
    (plain,) = compare([side("A", *runs["muon"][:3]), side("B", *runs["adamw"])], 0.005)
    (odd,) = compare([side("A", *a), side("B", *b)], 0.005)
    assert [row.p_recipes for row in odd.rows if row.kind == "all"] == [plain.row("all").p_recipes]
    assert odd.row("all").kind == "source" and odd.row("all").p_recipes == plain.row("web").p_recipes


def test_every_verdict_that_is_open_says_what_would_close_it(runs):
    """Over many widths: never an empty sentence, never fewer seeds than there are."""
    from pipeline.commands.compare import what_would
    from stages.compare.stats import Deviation, Difference

    (compared,) = compare([side("A", *runs["muon"][:3]), side("B", *runs["muon"][3:6])], 0.005)
    for error in (1e-5, 0.001, 0.0024, 0.0026, 0.01):
        row = dataclasses.replace(compared.row("all"), documents=Difference(0.004, error, 100.0))
        said = what_would(row, 0.005, None, 1)
        assert re.fullmatch(r"Some \d+ times as many documents would tell 0.005 .*", said)
        assert int(re.findall(r"\d+", said)[0]) >= max(2, (2 * error / 0.005) ** 2 - 1)
        for deviation in (1e-4, 0.002, 0.02):
            said = what_would(row, 0.005, Deviation(deviation, 4), 3)
            seeds = int(re.findall(r"about (\d+) seeds a side", said.lower())[0])
            assert seeds > 3 and said[0].isupper()
