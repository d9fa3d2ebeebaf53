"""A tiny packed mixture of learnable text, and helpers that train on it."""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import os
import random
import runpy
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.data.format import Header
from train.data.manifest import Manifest, Shard, Tokenizer, ValidationIds

ROOT = Path(__file__).parents[2]
BOS, PAD = 256, 257
VOCAB = 264  # 256 bytes, BOS, PAD and six that never occur
BUILD_ID = hashlib.sha256(b"the tests' mixture").hexdigest()

MODEL = {"dim": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64, "sliding_window": 16}
TRAIN = {
    "steps": 12,
    "batch_size": 8,
    "seq_len": 32,
    "log_every": 1,
    "checkpoint_every": 4,
    "eval_every": 0,
    "eval_tokens": 1024,
    "schedule": {"warmup": 2},
    "muon": {"lr": 0.01},
    "adamw": {"lr": 0.01},
    "sample_tokens": 0,
}

torch.set_num_threads(1)  # a run in this process rounds as a subprocess with one thread does


def text(seed: int, words: int) -> bytes:
    """Sentences from a handful of words, each one likely after the one before: something to learn."""
    rng = random.Random(seed)
    vocabulary = ["the", "small", "model", "reads", "every", "token", "once", "and", "then", "again"]
    position, out = 0, []
    for _ in range(words):
        position = (position + rng.choice([1, 1, 1, 2, 3])) % len(vocabulary)
        out.append(vocabulary[position])
    return " ".join(out).encode()


def write_shard(folder: Path, name: str, split: str, documents: list[bytes], padding: list[int] | None = None) -> Shard:
    """A shard and its index; so many padding tokens after each document (none: none)."""
    gaps = padding or [0] * len(documents)
    parts = [[BOS, *d, *[PAD] * gap] for d, gap in zip(documents, gaps, strict=True)]
    tokens = np.array([t for part in parts for t in part], "<u2")
    starts = np.cumsum([0] + [len(part) for part in parts[:-1]])
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(parts), len(parts) + 1)
    index += np.array([len(d) + 1 for d in documents], "<i4").tobytes() + (1024 + 2 * starts).astype("<i8").tobytes()
    (folder / f"{name}.idx").write_bytes(index + np.arange(len(parts) + 1, dtype="<i8").tobytes())
    path = folder / f"{name}.bin"
    path.write_bytes(Header(len(tokens), VOCAB, BOS, len(documents), BUILD_ID[:16]).pack() + tokens.tobytes())
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    return Shard(
        path.name,
        split,
        len(tokens),
        len(documents),
        path.stat().st_size,
        sha,
        f"{name}.idx",
        "",
        f"{name}.rows.parquet",
        "",
        "",
        padding=sum(gaps),
    )


def write_tokenizer(path: Path) -> None:
    """256 byte-level ids in the order of the bytes, no merges, and the specials."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's bytes_to_unicode
    spare = iter(range(256, 512))
    letters = [chr(b if b in printable else next(spare)) for b in range(256)]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|bos|>", special=True), AddedToken("<|pad|>", special=True)])
    tokenizer.save(str(path))


def make_mixture(folder: Path, model: dict[str, Any], phases: dict[str, dict[str, Any]], phase: str) -> Path:
    """Two training shards, one validation shard and a manifest in `folder`. Returns the manifest's path."""
    folder.mkdir(parents=True)
    shards = [
        write_shard(folder, "m_train_000000", "train", [text(i, 90) for i in range(20)]),
        write_shard(folder, "m_train_000001", "train", [text(100 + i, 60) for i in range(15)]),
        write_shard(folder, "m_val_000000", "val", [text(200 + i, 80) for i in range(4)]),
    ]
    return write_manifest(folder, shards, model, phases, phase)


def write_manifest(
    folder: Path, shards: list[Shard], model: dict[str, Any], phases: dict[str, dict[str, Any]], phase: str
) -> Path:
    """manifest.json and tokenizer.json for `shards`."""
    write_tokenizer(folder / "tokenizer.json")
    manifest = Manifest(
        schema_version=1,
        build_id=BUILD_ID,
        name="tiny",
        phase=phase,
        mixture=phase,
        seed=0,
        tokens=sum(s.tokens - s.padding for s in shards if s.split == "train"),
        val_tokens=sum(s.tokens - s.padding for s in shards if s.split == "val"),
        documents=sum(s.documents for s in shards if s.split == "train"),
        tokenizer=Tokenizer(
            path="tokenizer.json",
            sha256=hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
            vocab_size=VOCAB,
            bos_id=BOS,
            pad_id=PAD,
            special_ids={"<|bos|>": BOS, "<|pad|>": PAD},
            token_bytes=[1] * 256 + [0] * (VOCAB - 256),
        ),
        shards=shards,
        sources=[],
        val_ids=ValidationIds("val_ids.bin", "", 4, "blake2b-128 below 2%"),
        recipe={"model": model, "train": phases},
        source_tree="",
    )
    path = folder / "manifest.json"
    path.write_text(manifest.to_json())
    return path


def sets(**values: Any) -> list[str]:
    """--set texts: steps=3 -> train.steps=3; model__dim=8 -> model.dim=8; schedule__warmup=1."""
    names = {k: k.replace("__", ".") for k in values}
    return [
        f"{n if n.startswith('model.') else 'train.' + n}={v if isinstance(v, str) else json.dumps(v)}"
        for (k, n), v in zip(names.items(), values.values(), strict=True)
    ]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    """Step -> loss; fails when a step stands twice."""
    lines = [m for m in metrics(folder) if "loss" in m]
    result = {m["step"]: m["loss"] for m in lines}
    assert len(result) == len(lines)
    return result


def start(
    manifest: Path,
    overrides: list[str],
    processes: int = 0,
    variables: dict[str, str] | None = None,
    program: str = "train/main.py",
) -> subprocess.Popen[str]:
    """train/main.py from the clone, not installed, in another folder; `processes` above 0: under torchrun."""
    launcher = [sys.executable]
    if processes:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, str(ROOT / program), "--manifest", str(manifest)]
    if overrides:
        command += ["--set", *overrides]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", **(variables or {})}
    return subprocess.Popen(
        command, cwd=manifest.parent, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


class Forked:
    """As `start` gives it, a process of its own, forked from a server that has loaded torch once: that takes longer
    than most runs here. It has the parts of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        manifest: Path | str,
        overrides: list[str],
        variables: dict[str, str],
        program: str = "train/main.py",
        home: Path | None = None,
    ):
        """home: where it runs; by default above the manifest."""
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["torch", "torch.distributed", "safetensors.torch", "train.main"])
        self.said = Path(tempfile.mkdtemp(dir=home or Path(manifest).parents[1])) / "said"
        argv = [str(ROOT / program), "--manifest", str(manifest), "--set", *overrides]
        self.process = server.Process(target=_forked, args=(argv, variables, str(self.said)))
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> None:
        self.process.join(timeout)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it said; it must have ended by then."""
        self.wait(timeout)
        assert self.returncode is not None, f"still there after {timeout} s"
        return self.said.read_text(), None


def _forked(argv: list[str], variables: dict[str, str], said: str) -> None:
    os.environ.update(variables)
    os.chdir(Path(said).parent)
    with Path(said).open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    torch.set_num_threads(1)
    gc.freeze()  # what was loaded ahead is not searched for garbage
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def start_ranks(
    launch: Any, world: int, *args: Any, variables: dict[str, str] | None = None, **kwargs: Any
) -> list[Forked]:
    """`world` processes of the trainer with the variables that torchrun would set, and no torchrun."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    place |= {"LOCAL_WORLD_SIZE": str(world), **(variables or {})}
    ranks = [{**place, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world)]
    return [launch(*args, variables=each, how=Forked, **kwargs) for each in ranks]


def ended(processes: Sequence[subprocess.Popen[str] | Forked], seconds: float = 90) -> list[str]:
    """What each said; all must end with status 0."""
    said = [p.communicate(timeout=seconds)[0] for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), said
    return said


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def wait_for(path: Path, steps: int) -> None:
    """Until metrics.jsonl has that many steps."""
    end = time.time() + 90
    while time.time() < end:
        if path.exists() and path.read_text().count('"loss"') >= steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path}: not {steps} steps after 90 s")
