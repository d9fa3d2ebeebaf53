"""The page of a run and its charts: what stands there, that it is the same again, and where points lie."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import xml.etree.ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trainer_harness import metrics, sets

from train import page
from train.main import run
from train.monitor.metrics import read_json_lines
from train.monitor.svg import BOTTOM, HEIGHT, LEFT, MOST, RIGHT, TOP, WIDTH, Series, chart, short, ticks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def folder(pretrain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "a run"
    more = sets(out=str(folder), steps=12, eval_every=4, ema__decay=0.9, ema__every=2, sample_tokens=4, peak_tflops=1.0)
    run(pretrain, more)
    return folder


@pytest.mark.slow
def test_the_page_says_what_the_run_was(folder, pretrain):
    text = (folder / "summary.md").read_text()
    summary, last = json.loads((folder / "summary.json").read_text()), metrics(folder)[-1]
    assert text.startswith("# tiny / pretrain\n\nDone: 12 steps.")
    for wanted in (
        f"{summary['parameters']:,} parameters",
        f"build `{summary['build_id'][:16]}`",
        "12 steps of 8 x 32 tokens: 3,072 tokens, 0.21 epochs",
        "1 x cpu, micro-batch 8; torch ",
        "of 1 TFLOP/s (dense bf16)",
        "| started | at step 0 on 1 process |",
        "| bits/byte | before | unigram | step 12 | ema | nats/token |",
        f"| {summary['before']['bits_per_byte']:.4f} | {summary['unigram']['bits_per_byte']:.4f} | "
        f"**{summary['after']['bits_per_byte']:.4f}** | {last['val_bits_per_byte_ema']:.4f} | {last['val_loss']:.4f}",
    ):
        assert wanted in text
    named = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert named == [f"plots/{name}.svg" for name in ("loss", "learning_rate", "grad_norm", "speed")]
    assert all(ET.parse(folder / name).getroot().tag == f"{SVG}svg" for name in named)
    command = next(line for line in text.splitlines() if line.startswith("python train/main.py"))
    given = shlex.split(command)
    assert given[3] == str(pretrain) and given[-2:] == [f"train.out={folder}", "train.resume=auto"]
    assert run(given[3], given[5:])["status"] == "done"  # and it works: nothing is left to do


def test_the_same_files_give_the_same_page_also_by_the_command(folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = {p: p.read_bytes() for p in [copy / "summary.md", *(copy / "plots").iterdir()]}
    for path in before:
        path.unlink()
    assert page.main([str(copy)]) == 0 and capsys.readouterr().out == f"{copy / 'summary.md'}\n"
    assert {p: p.read_bytes() for p in before} == before
    assert page.main([str(tmp_path)]) == 1 and "name the folder of a run" in capsys.readouterr().err
    for foreign, what in (('{"a": 1}', "not a run of ours"), ("[]", "a list where an object of JSON should be")):
        (tmp_path / "run.json").write_text(foreign)
        assert page.main([str(tmp_path)]) == 1 and what in capsys.readouterr().err


def test_a_killed_run_has_a_page(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    kept = [r for r in (copy / "metrics.jsonl").read_text().splitlines() if json.loads(r)["step"] <= 9]
    (copy / "metrics.jsonl").write_bytes("\n".join(kept).encode() + b'\n\xff{"step": 10, "lo')  # cut by the kill
    events = [
        {"step": s, "event": "loss spike", "loss": 9.0, "grad_norm": 3.0, "applied": True, "batch": batch}
        for s, batch in ((5, [{"shard": "a.bin", "token": 0, "documents": [3, 4]}] * 7), (7, []))
    ]
    events.append({"step": 8, "event": "rank loss", "matrix": "blocks.0.w", "smin": 1e-9, "smax": 2.0, "rcond": 5e-10})
    (copy / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    assert [r["step"] for r in read_json_lines(copy / "metrics.jsonl")][-1] == 9
    text = page.write_page(copy).read_text()
    assert "Not at its end: 9 of 12 steps." in text and "| bits/byte | before | step 8 | ema |" in text
    assert "loss spike: 2, rank loss: 1." in text
    assert "`a.bin` 3-4 and 2 rows more" in text.replace("`a.bin` 3-4, " * 4, "")
    assert "rank loss: blocks.0.w has singular values from 1.0e-09 to 2.0e+00" in text
    assert "--step 5" in text and "## Samples" not in text
    assert (copy / "plots/loss.svg").read_text().count('stroke="#e5484d" stroke-opacity') == 2
    scored = {"val_loss": 2.0, "val_bits_per_byte": 1.0, "val_loss_ema": 2.0}
    asked = [{"step": s, **scored, "arc_easy/acc": a, "arc_easy/acc_ema": 0.5} for s, a in ((0, 0.25), (8, 0.375))]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in asked))
    assert "| arc_easy | 0.2500 | **0.3750** | 0.5000 |" in page.write_page(copy).read_text()
    (copy / "metrics.jsonl").write_text("")
    assert "None yet." in page.write_page(copy).read_text()


def test_a_page_that_cannot_be_made_does_not_end_the_run(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page, "page_text", lambda *_: 1 / 0)
    page.refresh_page(folder)
    assert "warning: no " in capsys.readouterr().err


def test_samples_and_names_cannot_break_the_page():
    assert page.code_block("a```b````c") == "`````\na```b````c\n`````"
    assert page.markdown_table(("a",), [("x|y",)]).endswith("| x\\|y |")


figures = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 10**7), figures), max_size=30), st.booleans(), st.booleans())
@example([(0, 1.0), (0, 2.2e-309)], False, False)
def test_any_figures_give_a_chart_with_all_points_inside(pairs, zero, dots):
    pairs = sorted((x, y) for x, y in pairs if not math.isfinite(y) or abs(y) < 1e100)
    series = Series("<&>", [x for x, _ in pairs], [y for _, y in pairs], dots)
    root = ET.fromstring(chart("a < b", [series], zero))
    for path in root.iter(f"{SVG}path"):
        if path.get("fill") == "none":
            points = [tuple(map(float, p.split())) for p in path.get("d")[1:].split("L")]
            assert len(points) == sum(math.isfinite(y) for _, y in pairs)
            assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in points)


def test_a_long_series_is_thinned_and_keeps_its_spikes():
    ys = [1.0] * 50_000
    ys[31_234] = 2.9
    d = ET.fromstring(chart("t", [Series("s", range(50_000), ys)])).find(f"{SVG}path[@fill='none']").get("d")
    points = d[1:].split("L")
    heights = [float(p.split()[1]) for p in points]
    assert len(points) <= MOST and heights.count(min(heights)) == 1 and min(heights) < 100 < max(heights)


def test_ticks_and_figures_are_round():
    assert ticks(0, 60, 5) == [0, 20, 40, 60] and ticks(-0.1, 0.1, 5) == pytest.approx([-0.1, -0.05, 0, 0.05, 0.1])
    assert [short(v) for v in (0, 2e-5, 0.002, 3.5, 1200, 2.5e7)] == ["0", "2e-5", "0.002", "3.5", "1.2k", "25M"]
