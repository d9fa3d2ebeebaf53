"""Give every command damaged files: does each end with a line for people, or with what the undamaged file gives?

    python -m benchmarks.mutants --count 1000 [--kind sources] [--seed 0]

Four kinds of files are damaged one at a time (benchmarks/damage.py): sources of every format, recipes, all files of a
packed mixture, all files of a training run. A command on one runs in a fork of this process, under a limit of time and
of memory. What may not come of it: a stack trace, "a fault of ours", the end by a signal, a limit reached, or silence,
that is status 0 and another result where a checksum would have told.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import yaml

from benchmarks.damage import damage
from benchmarks.forked import Outcome, require, run, shardmill, trainer, warm_up
from benchmarks.measure import machine, parser, save, show

WORDS = "the small model reads every token of old and new books once then again with a long slow river below".split()  # noqa: SIM905


@dataclasses.dataclass(frozen=True)
class Case:
    """One damaged file and a command on it."""

    kind: str
    file: str
    damage: str
    command: str
    call: Callable[[], None]
    silent: Callable[[Outcome], bool]  # whether a command with status 0 took damage for good
    reproduce: str


# -- undamaged files ------------------------------------------------------------------------------------


def documents(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Return rows of made-up text."""
    rng = random.Random(seed)
    return [
        {
            "text": f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(20, 90))),
            "url": f"https://a.test/{i}",
            "score": i,
        }
        for i in range(count)
    ]


def questions(count: int) -> list[dict[str, object]]:
    """Return questions of made-up words with four choices."""
    rng = random.Random(1)
    return [
        {
            "question": f"Which {i} is {' '.join(rng.choices(WORDS, k=12))}?",
            "choices": [" ".join(rng.choices(WORDS, k=3)) for _ in range(4)],
            "answer": i % 4,
        }
        for i in range(count)
    ]


def write_sources(folder: Path) -> dict[str, tuple[Path, bool]]:
    """Write 300 rows in every format. Returns {kind: (file, whether the format has checksums)}."""
    import bz2
    import gzip
    import lzma

    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    rows = documents(300)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    plain = {
        "jsonl": lines,
        "text": "".join(f"{r['text']}\n" for r in rows).encode(),
        "json": json.dumps(rows).encode(),
    }
    packed = {
        "jsonl.gz": gzip.compress(lines),
        "jsonl.bz2": bz2.compress(lines),
        "jsonl.xz": lzma.compress(lines),
        "jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(lines),
    }
    files: dict[str, tuple[Path, bool]] = {}
    for name, data in {**plain, **packed}.items():
        path = folder / f"rows.{name.replace('text', 'txt')}"
        path.write_bytes(data)
        files[name] = path, name in packed
    files["evals"] = folder / "exam.jsonl", False
    files["evals"][0].write_text("".join(json.dumps(question) + "\n" for question in questions(40)))
    table = pa.Table.from_pylist(rows)
    for name, checksums in (("parquet", False), ("parquet with checksums", True)):
        path = folder / f"{name.replace(' ', '_')}.parquet"
        pq.write_table(table, path, row_group_size=60, write_page_checksum=checksums, compression="zstd")
        files[name] = path, checksums
    return files


def source_recipe(name: str, path: Path) -> dict[str, object]:
    """Return a recipe of one source file, whose format is said, or of one evaluation set."""
    if name == "evals":
        return {
            "name": "mutant",
            "evals": {"exam": {"from": "jsonl", "path": str(path)}},
            "sources": {"one": {"from": "installed_docs", "packages": ["yaml"]}},
        }
    form = "parquet" if name.startswith("parquet") else {"text": "text", "json": "json_array"}.get(name, "jsonl")
    source: dict[str, object] = {"from": form, "path": str(path), "rules": ["gopher_quality"]}
    if form in ("jsonl", "parquet"):
        source |= {"url": "url"}
    if form == "parquet":
        source |= {"where": {"score": {"min": 3}}, "rules": [{"metadata": {"score": {"min": 5}}}]}
    return {"name": "mutant", "sources": {"one": source}}


def write_recipe(folder: Path, value: dict[str, object]) -> Path:
    """Write a recipe into `folder`; return its path."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


def build_mixture(folder: Path) -> Path:
    """Build a small mixture with an evaluation set, and train on it. Returns the folder of its manifest."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in documents(600)))
    exam = folder / "exam.jsonl"
    exam.write_text("".join(json.dumps(question) + "\n" for question in questions(20)))
    phase = {"mixture": "anneal", "steps": 8, "batch_size": 4, "seq_len": 32}
    recipe = {
        "name": "small",
        "sources": {"one": {"from": "jsonl", "path": str(rows), "url": "url"}},
        "evals": {"exam": {"from": "jsonl", "path": str(exam)}},
        "tokenizer": {"vocab_size": 300, "sample": "1MB"},
        "dedup": {"near": False},
        "shard_tokens": 10_000,
        "mixtures": {"anneal": {"tokens": 30_000, "ratios": {"one": "100%"}, "max_epochs": 4}},
        "model": {"dim": 16, "n_layers": 2, "n_heads": 1, "max_seq_len": 32, "sliding_window": 16},
        "train": {"anneal": phase},
    }
    path = write_recipe(folder, recipe)
    arguments = ("--recipe", path, "--out", folder / "build", "--executor", "inline")
    require(run(shardmill("run", "pack_anneal_mix", *arguments), 300))
    return folder / "build" / "small" / "anneal"


# -- the four kinds -------------------------------------------------------------------------------------


def sources(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Yield damaged source files of every format for `run filter`, and evaluation sets for `run evals`."""
    import pyarrow.parquet as pq

    def kept(out: Path) -> list[object]:
        parts = sorted(out.glob("store/download/**/*part-*.parquet"))
        return [text for part in parts for text in pq.read_table(part, columns=["text"])["text"].to_pylist()]

    files = write_sources(folder)
    undamaged: dict[str, list[object]] = {}
    while True:
        name, (path, has_checksums) = rng.choice(list(files.items()))
        case_folder = Path(tempfile.mkdtemp(dir=folder))
        recipe, out = write_recipe(case_folder, source_recipe(name, case_folder / path.name)), case_folder / "build"
        stage = "evals" if name == "evals" else "filter"
        call = shardmill("run", stage, "--recipe", recipe, "--out", out, "--executor", "inline")
        if name not in undamaged:
            shutil.copy(path, case_folder)
            require(run(call, 300))
            undamaged[name] = kept(out)
            if not undamaged[name] and name != "evals":
                raise RuntimeError(f"{name}: nothing kept of undamaged rows")
            shutil.rmtree(case_folder)
            continue
        how, data = damage(path.read_bytes(), rng)
        (case_folder / path.name).write_bytes(data)

        def silent(outcome: Outcome, name: str = name, out: Path = out, checked: bool = has_checksums) -> bool:
            lost = "quarantine" not in outcome.output and kept(out) != undamaged[name]
            return checked and lost

        yield Case("sources", name, how, f"run {stage}", call, silent, str(case_folder))


def with_small_packages(recipe: bytes) -> bytes:
    """Return a recipe that reads the documentation of small packages, where it would read that of large ones."""
    return recipe.replace(b"[stdlib, numpy, torch]", b"[yaml]").replace(b"[sympy]", b"[filelock]")


def recipes(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Yield damaged recipes, of those that ship, for `plan` and `status`."""
    import manifests

    shipped = sorted(path for path in Path(next(iter(manifests.__path__))).glob("*.yaml"))
    while True:
        path = rng.choice(shipped)
        case_folder = Path(tempfile.mkdtemp(dir=folder))
        how, data = damage(with_small_packages(path.read_bytes()), rng)
        (case_folder / path.name).write_bytes(data)
        # What a recipe of the hub names cannot be listed here, so that its plan would wait for a network.
        command = ["plan", "build_tokenizer"] if b"installed_docs" in data else ["status"]
        call = shardmill(*command, "--recipe", case_folder / path.name, "--out", case_folder / "build")
        yield Case("recipes", path.name, how, " ".join(command), call, lambda _: False, str(case_folder))


def mixtures(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Yield files of a packed mixture, damaged, for every command that reads one."""
    mixture = build_mixture(folder)
    names = sorted(str(path.relative_to(mixture)) for path in mixture.rglob("*") if path.is_file())
    commands: dict[str, Callable[[Path], Callable[[], None]]] = {
        "verify": lambda m: shardmill("verify", m),
        "inspect": lambda m: shardmill("inspect", m),
        "trace": lambda m: shardmill(
            "trace", m, "--shard", "0", "--token", "77", "--source", f"one={folder / 'rows.jsonl'}"
        ),
        "find": lambda m: shardmill("find", m, "--text", "slow river"),
        "diff": lambda m: shardmill("diff", m, mixture),
        "train": lambda m: trainer(m, "train.steps=1", f"train.out={m.parent}/run"),
    }
    for call in commands.values():
        require(run(call(mixture), 60))
    while True:
        name = rng.choice(names)
        how, data = damage((mixture / name).read_bytes(), rng)
        # A manifest's digest is of what it says, and not of how that is written.
        means_the_same = name == "manifest.json" and same_json(data, (mixture / name).read_bytes())
        for command, call in commands.items():
            copy = Path(tempfile.mkdtemp(dir=folder)) / "anneal"
            shutil.copytree(mixture, copy)
            (copy / name).write_bytes(data)
            yield Case(
                "mixtures",
                name,
                how,
                command,
                call(copy),
                partial(always, command == "verify" and not means_the_same),
                str(copy.parent),
            )


def always(answer: bool, outcome: Outcome) -> bool:
    """Return `answer`, whatever the outcome was."""
    return answer


def same_json(a: bytes, b: bytes) -> bool:
    """Return whether both texts are JSON and say the same."""
    try:
        return bool(json.loads(a) == json.loads(b))
    except ValueError:
        return False


def checkpoints(folder: Path, rng: random.Random) -> Iterator[Case]:
    """Yield files of a stopped training run, damaged, for its continuation and for `generate`."""
    mixture = build_mixture(folder)
    whole, stopped = folder / "whole", folder / "stopped"
    require(run(trainer(mixture, f"train.out={whole}"), 120))
    require(run(trainer(mixture, f"train.out={stopped}"), 120))
    shutil.rmtree(max(stopped.glob("checkpoints/step_*")))
    for name in ("summary.json", "summary.md"):
        (stopped / name).unlink(missing_ok=True)
    names = sorted(str(path.relative_to(stopped)) for path in stopped.rglob("*") if path.is_file())

    def weights(run_folder: Path) -> list[str]:
        last = max(run_folder.glob("checkpoints/step_*"))
        return [
            hashlib.sha256((last / f"{part}.safetensors").read_bytes()).hexdigest() for part in ("model", "optimizer")
        ]

    def silent(outcome: Outcome, copy: Path) -> bool:
        return weights(copy) != weights(whole)

    def generated(run_folder: Path) -> Callable[[], None]:
        from train.generate import main

        return lambda: sys.exit(main([str(run_folder), "--prompt", "the slow river", "--tokens", "20"]))

    text = require(run(generated(whole))).output
    undamaged = folder / "undamaged"
    shutil.copytree(stopped, undamaged)
    if silent(require(run(trainer(mixture, f"train.out={undamaged}"), 120)), undamaged):
        raise RuntimeError("a run that goes on does not give the same weights")
    while True:
        name = rng.choice(names)
        how, data = damage((stopped / name).read_bytes(), rng)
        copy = Path(tempfile.mkdtemp(dir=folder)) / "run"
        shutil.copytree(stopped, copy)
        (copy / name).write_bytes(data)
        trained = trainer(mixture, f"train.out={copy}")
        yield Case("checkpoints", name, how, "train", trained, partial(silent, copy=copy), str(copy.parent))
        name = rng.choice([name for name in names if (whole / name).exists()])
        how, data = damage((whole / name).read_bytes(), rng)
        copy = Path(tempfile.mkdtemp(dir=folder)) / "run"
        shutil.copytree(whole, copy)
        (copy / name).write_bytes(data)
        call = generated(copy)
        yield Case("checkpoints", name, how, "generate", call, lambda outcome: outcome.output != text, str(copy.parent))


KINDS = {"sources": sources, "recipes": recipes, "mixtures": mixtures, "checkpoints": checkpoints}


# -- the table ------------------------------------------------------------------------------------------


def faults(kind: str, count: int, seed: int, folder: Path) -> Iterator[tuple[Case, Outcome, str]]:
    """Yield (case, outcome, fault or "") of `count` commands on damaged files of `kind`."""
    cases = KINDS[kind](folder, random.Random(seed))
    for _ in range(count):
        case = next(cases)
        outcome = run(case.call)
        fault = outcome.fault or ("silence" if outcome.status == 0 and case.silent(outcome) else "")
        if not fault:
            shutil.rmtree(case.reproduce)
        yield case, outcome, fault


def main(arguments: Sequence[str] | None = None) -> int:
    """Read mutants of each kind, and print what is wrong. Returns 1 where anything is."""
    given = parser(__doc__, count=1000, kind="", seed=0).parse_args(arguments)
    warm_up()
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    rows, found = [], 0
    for kind in [given.kind] if given.kind else KINDS:
        (folder / kind).mkdir()
        counts: Counter[str] = Counter()
        slowest = 0.0
        for case, outcome, fault in faults(kind, given.count, given.seed, folder / kind):
            counts[fault or ("refused" if outcome.status else "done")] += 1
            slowest = max(slowest, outcome.seconds)
            if fault:
                found += 1
                last = outcome.output.strip().splitlines()[-1:] or ["(nothing printed)"]
                print(
                    f"{kind}: {fault}: {case.file}, {case.damage}, {case.command}: {last[0][:300]} [{case.reproduce}]",
                    flush=True,
                )
            if sum(counts.values()) % 100 == 0:
                print(
                    f"{kind}: {sum(counts.values()):,} of {given.count:,}, {dict(counts)}", file=sys.stderr, flush=True
                )
        bad = sum(n for name, n in counts.items() if name not in ("refused", "done"))
        rows.append((kind, given.count, counts["done"], counts["refused"], bad, round(slowest, 1)))
    header = ("kind", "commands", "done", "refused with a line", "faults", "slowest s")
    show(header, rows)
    save(
        "mutants",
        {"seed": given.seed, "kinds": [dict(zip(header, row, strict=True)) for row in rows], "machine": machine()},
    )
    if not found:
        shutil.rmtree(folder)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
