"""`doctor`: a machine as it should be, and real faults, each found on a line of its own with how to mend it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import REPO, cli
from engine_harness import documents, small_recipe, write_jsonl
from loopback_hub import Dataset, Hub
from s3_server import S3Server

pytestmark = pytest.mark.slow

CHECKS = ["python", "packages", "recipe", "memory", "torch", "disk", "temporary", "descriptors", "shared memory"]
CHECKS += ["kernel cache", "ray", "source", "source", "source", "room", "clock"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe over three small sources, built without Ray."""
    corpus = tmp_path / "corpus"
    values = {**small_recipe(corpus), "executor": "local"}
    for name, source in values["sources"].items():
        source["from"] = "jsonl"
        write_jsonl(corpus / name / "a.jsonl", documents(len(name), 300))
    return write(tmp_path / "small.yaml", values)


def write(file: Path, values: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    """What is not ok, by what was looked at, of a command with --json."""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    assert all(line["text"] for line in lines)
    return {line["check"]: line for line in lines if line["state"] != "ok"}


def test_a_machine_as_it_should_be(recipe: Path, tmp_path: Path) -> None:
    done = cli("doctor", "--recipe", str(recipe), "--out", str(tmp_path / "out"), "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["check"] for line in lines] == CHECKS
    assert not [line for line in lines if line["state"] == "wrong"]
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".doctor*")), "it leaves nothing"


def test_ray_starts_here_and_where_nobody_listens_it_does_not() -> None:
    text = cli("doctor").stdout
    assert "\nok       ray            starts here: " in text
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        done = cli("doctor", "--address", f"ray://127.0.0.1:{nobody.getsockname()[1]}")
    assert "wrong    ray " in done.stdout and "nobody listens there" in done.stdout
    assert done.returncode == 1
    assert done.stderr == "error: 1 of these is wrong; each line says how to mend it\n"


def in_a_poor_machine(folder: Path, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with small file systems at `folder`/small, the folder of temporary files and /dev/shm, few files
    and without room for kernels: in a mount namespace of its own.
    """
    (folder / "small").mkdir()
    (folder / "tmp").mkdir()
    mounts = [("8m", folder / "small"), ("8m", folder / "tmp"), ("4m", Path("/dev/shm"))]
    script = "".join(f"mount -t tmpfs -o size={size} tmpfs '{place}' && " for size, place in mounts)
    script += 'ulimit -n 60 && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", script, "sh", sys.executable, "-m", "pipeline", *arguments]
    more = {"TMPDIR": str(folder / "tmp"), "NUMBA_CACHE_DIR": "/dev/null/kernels", **environment}
    return subprocess.run(command, cwd=REPO, env={**os.environ, **more}, capture_output=True, text=True, timeout=120)


def has_namespaces() -> bool:
    """Whether this user may mount, in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="mount namespaces are not to be had here")
def test_a_poor_machine(recipe: Path, tmp_path: Path) -> None:
    """Eight faults at once: each is found, and none hides another."""
    installed = tmp_path / "path/numpy-1.21.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.21.0\n")
    values = yaml.safe_load(recipe.read_text())
    values["ranks"] = 999
    values["sources"]["web"]["path"] = str(tmp_path / "nowhere")
    write(recipe, values)
    arguments = ["doctor", "--recipe", str(recipe), "--out", str(tmp_path / "small/out"), "--json"]
    done = in_a_poor_machine(tmp_path, arguments, PYTHONPATH=str(installed.parent))
    assert done.returncode == 1
    found = findings(done)
    assert {check: line["state"] for check, line in found.items()} == {
        "packages": "wrong",
        "torch": "wrong",
        "disk": "wrong",
        "temporary": "wrong",
        "descriptors": "wrong",
        "shared memory": "warning",
        "kernel cache": "warning",
        "source": "wrong",
    }
    assert found["packages"]["text"] == "numpy is 1.21.0, >=2.0 is needed"
    assert found["packages"]["mend"] == 'python -m pip install "numpy>=2.0"'
    assert "8 MB free" in found["disk"]["text"]
    assert "60 files may be open" in found["descriptors"]["text"]
    assert "ranks are 999" in found["torch"]["text"]
    assert "/dev/null/kernels cannot be written" in found["kernel cache"]["text"]
    assert found["source"]["text"].startswith(f"web: no files match {tmp_path}/nowhere")
    assert all(line["mend"] for check, line in found.items() if check != "source")


def test_more_than_the_disk_has(recipe: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(recipe.read_text())
    values["mixtures"]["pretrain"]["tokens"] = 10**15
    found = findings(cli("doctor", "--recipe", str(write(recipe, values)), "--out", str(tmp_path), "--json"))
    assert found["room"]["state"] == "wrong"
    assert "the recipe makes 2,000,000.0 GB" in found["room"]["text"]


def test_a_bucket(s3: S3Server, recipe: Path) -> None:
    """One that works and leaves nothing behind, one that refuses us, none at all, and one whose clock is another."""
    out = s3.new_bucket()
    done = cli("doctor", "--recipe", str(recipe), "--out", out)
    assert f"ok       bucket         {out}: written, read and deleted" in done.stdout
    assert done.returncode == 0, done.stdout
    assert s3.requests["DELETE"] + s3.requests["POST"] == 1
    s3.ahead = 1000.0
    found = findings(cli("doctor", "--recipe", str(recipe), "--out", out, "--json"))
    assert found["clock"]["state"] == "wrong"
    assert f"s behind {out}" in found["clock"]["text"]
    s3.reset()
    s3.fault = lambda environ: "403"
    found = findings(cli("doctor", "--recipe", str(recipe), "--out", out, "--json"))
    assert "the store refuses us" in found["bucket"]["text"] and "credentials" in found["bucket"]["text"]
    s3.reset()
    found = findings(cli("doctor", "--recipe", str(recipe), "--out", "s3://nothing-of-the-kind", "--json"))
    assert "there is no such bucket" in found["bucket"]["text"]


def test_a_hub_that_refuses(recipe: Path, tmp_path: Path) -> None:
    text = "".join(json.dumps({"text": text}) + "\n" for text in documents(1, 300)).encode()
    sets = {"owner/open": Dataset({"a.jsonl": text}), "owner/gated": Dataset({"a.jsonl": text}, gated=True)}
    values = yaml.safe_load(recipe.read_text())
    values["sources"]["web"]["path"] = "hf://datasets/owner/gated/a.jsonl"
    values["sources"]["maths"]["path"] = "hf://datasets/owner/open/a.jsonl"
    values["sources"]["notes"]["path"] = "hf://datasets/owner/none/a.jsonl"
    write(recipe, values)
    arguments = ["doctor", "hf://datasets/owner/open", "--recipe", str(recipe), "--out", str(tmp_path / "out")]
    with Hub(sets, token="secret") as hub:
        done = cli(*arguments, HF_ENDPOINT=hub.endpoint, HF_TOKEN="wrong")
    lines = [line for line in done.stdout.splitlines() if " source " in line or " address " in line]
    assert lines[0].startswith("ok       address        hf://datasets/owner/open: 1 file, ")
    assert "wrong    source         web: hf://datasets/owner/gated" in lines[1] and "gated" in lines[1]
    assert "ok       source         maths: 1 file, " in lines[2]
    assert "wrong    source         notes: hf://datasets/owner/none" in lines[3] and "no such dataset" in lines[3]
    assert "the hub" in done.stdout.splitlines()[-1], "its clock was asked"
    assert "wrong" not in done.stderr.replace("are wrong", "") and done.returncode == 1
