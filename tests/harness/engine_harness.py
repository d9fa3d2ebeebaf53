"""What the engine's tests share: a seeded corpus, a small recipe, the command line, and snapshots of a store.

Everything goes through `python -m pipeline` in a process of its own, as users have it; see commands.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from commands import LIMIT, REPO, Command, python


def words(rng: random.Random, n: int) -> list[str]:
    """`n` distinct words that can be pronounced."""
    found: dict[str, None] = {}
    while len(found) < n:
        syllables = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
        found["".join(syllables) + rng.choice(["", "n", "r", "s"])] = None
    return list(found)


def documents(seed: int, n: int, repeated: Sequence[str] = ()) -> list[str]:
    """`n` documents of some forty words; `repeated` are mixed in evenly."""
    rng = random.Random(seed)
    lexicon = words(random.Random(5), 700)
    weights = [1 / (rank + 3) for rank in range(len(lexicon))]
    texts = []
    for _ in range(n):
        chosen = rng.choices(lexicon, weights, k=rng.randint(15, 70))
        chosen[rng.randrange(len(chosen))] = f"{rng.randint(0, 9999)}"
        texts.append(" ".join(chosen).capitalize() + ".")
    for i, text in enumerate(repeated):
        texts.insert((i * 7919) % len(texts), text)
    return texts


def write_jsonl(path: Path, texts: list[Any]) -> None:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": t, "score": len(str(t)) % 7}) + "\n" for t in texts))


def write_parquet(path: Path, texts: list[str], **options: Any) -> None:
    """A parquet file with a text and a url column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    urls = [f"https://example.org/{path.stem}/{i}" for i in range(len(texts))]
    pq.write_table(pa.table({"text": texts, "url": urls}), path, row_group_size=200, **options)


def write_corpus(folder: Path) -> None:
    """Three sources: web (jsonl, three files), maths (parquet, two files), notes (jsonl, one file).

    60 documents of maths are repeated in web and 20 inside notes; web has one bad row, within the tolerance.
    """
    maths = documents(1, 700)
    for i in range(2):
        write_parquet(folder / "maths" / f"m{i}.parquet", maths[350 * i : 350 * (i + 1)])
    web = documents(2, 1300, maths[:60])
    web[500:500] = [None]  # type: ignore[list-item]
    for i in range(3):
        write_jsonl(folder / "web" / f"w{i}.jsonl", web[450 * i : 450 * (i + 1)] if i < 2 else web[900:])
    notes = documents(3, 300)
    write_jsonl(folder / "notes" / "n.jsonl", notes + notes[:20])


def small_recipe(corpus: Path) -> dict[str, Any]:
    """A recipe over `write_corpus` that packs in a second or two."""
    return {
        "name": "small",
        "seed": 7,
        "sources": {
            "web": {"from": "jsonl", "path": str(corpus / "web"), "rules": [{"length": {"min_chars": 100}}]},
            "maths": {"from": "parquet", "path": str(corpus / "maths"), "rules": [{"length": {"min_chars": 100}}]},
            "notes": {"from": "jsonl", "path": str(corpus / "notes")},
        },
        "dedup": {"exact": True, "priority": ["maths", "web"]},
        "tokenizer": {"vocab_size": 600, "sample": "200kB"},
        "shard_tokens": "10k",
        "mixtures": {
            "pretrain": {"tokens": "50k", "ratios": {"web": 0.7, "maths": 0.2, "notes": 0.1}},
            "anneal": {"tokens": "20k", "ratios": {"web": 0.2, "maths": 0.5, "notes": 0.3}, "max_epochs": 2},
        },
        "model": {"dim": 32, "n_layers": 2, "n_heads": 2, "mlp_hidden": 64, "max_seq_len": 64, "sliding_window": 16},
        "train": {
            "pretrain": {"mixture": "pretrain", "steps": 4, "batch_size": 4, "seq_len": 32},
            "anneal": {"mixture": "anneal", "init_from": "pretrain", "steps": 2, "batch_size": 4, "seq_len": 32},
        },
    }


@dataclass
class Work:
    """A folder with a corpus, a recipe file and a store, and the project that runs on them."""

    folder: Path
    root: Path = REPO
    shared: Path | None = None  # a corpus that belongs to somebody else
    is_loaded: bool = False  # commands are forked though the project is another: edits of it are to be read, not run

    @property
    def corpus(self) -> Path:
        return self.shared or self.folder / "corpus"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def recipe(self) -> Path:
        return self.folder / "small.yaml"

    def write(self, **changes: Any) -> dict[str, Any]:
        """Write the recipe with top-level keys replaced, and return it."""
        recipe = {**small_recipe(self.corpus), **changes}
        self.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return recipe

    def command(self, *arguments: str) -> list[str]:
        """argv of one command on this recipe and store."""
        head = [sys.executable, "-m", "pipeline", *arguments]
        if arguments[0] in ("run", "plan", "status", "ladder"):
            head += ["--recipe", str(self.recipe)]
        if arguments[0] in ("run", "plan", "status", "clean", "ladder") and "--out" not in arguments:
            head += ["--out", str(self.out)]
        return head

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a command: this project, wherever the command is given."""
        paths = [str(self.root), *([more.pop("PYTHONPATH")] if "PYTHONPATH" in more else [])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200", **more}

    def forks(self, environment: Mapping[str, str]) -> bool:
        """Whether a command with these variables is forked: one of a loaded project, unless they say how Python itself
        is to start, or are the mark of `marked`, which sees only the variables that a program was started with."""
        own_start = any(name.startswith(("PYTHON", "SHARDMILL_TEST")) for name in environment)
        return (self.root == REPO or self.is_loaded) and not own_start

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str] | Command:
        """The command as a process in a session of its own, output to files beside the recipe."""
        command, variables = self.command(*arguments), self.environment(**environment)
        with (self.folder / "stdout").open("w") as out, (self.folder / "stderr").open("w") as err:
            if self.forks(environment):
                return Command(command[1:], self.folder, variables, out, err, self.root)
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=variables,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )

    def cli(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end, forked if it can be."""
        command, variables = self.command(*arguments), self.environment(**environment)
        if self.forks(environment):
            return python(command[1:], self.folder, variables, root=self.root)
        return subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=LIMIT)

    def run(self, stage: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`run STAGE` on the pool of processes; it must succeed."""
        executor = () if "--executor" in options else ("--executor", "local")
        done = self.cli("run", stage, *executor, *options, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def fails(self, *arguments: str, status: int = 1, **environment: str) -> str:
        """The message of a command that must fail with one or two lines and no stack trace."""
        done = self.cli(*arguments, **environment)
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        message = done.stderr[done.stderr.index("error: ") :] if "error: " in done.stderr else ""
        assert message, f"no message: {done.stderr!r}"
        assert len(message.strip().splitlines()) <= 2, message
        return message

    def records(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(stage, key) -> record of every finished unit."""
        found = (json.loads(p.read_text()) for p in sorted(self.out.glob("store/*/??/*/record.json")))
        return {(r["stage"], r["key"]): r for r in found}

    def results(self) -> dict[str, str]:
        """sha256 of all published shards, indices and tokenizers, by name, and the digest of every table."""
        found: dict[str, str] = {}
        for folder in ("tokenizer", "pretrain", "anneal"):
            for file in sorted((self.out / "small" / folder).glob("*")):
                if file.suffix in (".bin", ".idx") or file.name == "tokenizer.json":
                    found[f"{folder}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
            manifest = self.out / "small" / folder / "manifest.json"
            if manifest.exists():
                shards = json.loads(manifest.read_text())["shards"]
                found |= {f"{folder}/{s['rows']}": s["rows_digest"] for s in shards}
        for (stage, _), record in self.records().items():
            if stage != "train":
                named = {(a["name"], a["rows_from"]): a["digest"] for a in record["outputs"]}
                found |= {f"{stage} {record['label']} {name}": digest for name, digest in named.items()}
        return found

    def snapshot(self) -> dict[str, tuple[int, int, str]]:
        """Inode, modification time and contents of everything under the store and the results."""
        found = {}
        for path in sorted(self.out.rglob("*")):
            info = path.lstat()
            content = str(path.readlink()) if path.is_symlink() else ""
            if path.is_file() and not path.is_symlink():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(self.out))] = (info.st_ino, info.st_mtime_ns, content)
        return found


def new_work(folder: Path, root: Path = REPO, corpus: Path | None = None) -> Work:
    """The small recipe in `folder`, and a corpus unless there is one already."""
    work = Work(folder, root, corpus)
    if corpus is None:
        write_corpus(work.corpus)
    work.write()
    return work


def copy_project(folder: Path, unit_bytes: int | None = None) -> Path:
    """A copy of the project that a test may edit; with `unit_bytes`, one that cuts its input finer."""
    root = folder / "project"
    for package in ("pipeline", "stages", "train", "manifests"):
        shutil.copytree(REPO / package, root / package)  # with the compiled modules, which hold as long as times do
    if unit_bytes:
        edit(root / "stages/sources/base.py", "UNIT_BYTES = 128 << 20", f"UNIT_BYTES = {unit_bytes}")
    return root


def edit(file: Path, old: str, new: str) -> None:
    """Replace `old`, which must be there, by `new`."""
    text = file.read_text()
    assert old in text, f"{file} no longer holds {old!r}"
    file.write_text(text.replace(old, new, 1))


def started_since(work: Work, moment: float) -> set[tuple[str, str]]:
    """(stage, label) of the units whose record was made after `moment`."""
    return {(r["stage"], r["label"]) for r in work.records().values() if r["started"] > moment}


# -- processes -------------------------------------------------------------------------------------------


def processes() -> Iterator[tuple[int, int, str]]:
    """(pid, session, command line) of every process that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                yield int(entry.name), int(fields[3]), command


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below `pid`, itself left out."""
    parents: dict[int, int] = {}
    commands = {p: c for p, _, c in processes()}
    for child in commands:
        try:
            parents[child] = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: dict[int, str] = {}
    front = [pid]
    while front:
        front = [child for child, parent in parents.items() if parent in front and child not in found]
        found |= {child: commands[child] for child in front}
    return found


def marked(mark: str) -> dict[int, str]:
    """Processes that have SHARDMILL_TEST=mark in their environment: a driver and all it started."""
    found = {}
    for pid, _, command in processes():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
        if f"SHARDMILL_TEST={mark}".encode() in environment:
            found[pid] = command
    return found


def gone(mark: str, seconds: float = 15) -> dict[int, str]:
    """Wait until no process with this mark is left; returns those that are."""
    end = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def kill(pid: int) -> None:
    """kill -9, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_for(condition: Any, what: str, seconds: float = LIMIT) -> Any:
    """Poll until `condition()` is true, and return what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)
    return value
