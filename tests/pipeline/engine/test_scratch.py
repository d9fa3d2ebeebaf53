"""Scratch space goes with its process, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.engine.scratch import PREFIX, Scratch, delete_abandoned

MAKE = """
from pipeline.engine.scratch import Scratch
scratch = Scratch()
with scratch.temporary_folder() as folder:
    print(folder, flush=True)
    input()
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_what_a_process_left_is_deleted_and_what_a_living_one_has_is_not(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", MAKE], **pipes) as process:  # type: ignore[call-overload]
        folder = Path(process.stdout.readline().strip())
        theirs = folder.parent
        ours = Scratch()
        assert ours.folder().is_dir() and folder.is_dir(), "its owner is at work"
        if end == "kill":
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert folder.is_dir(), "nobody was there to delete it"
        else:
            process.communicate("\n")
            assert not theirs.exists()
    other = Scratch()
    living = {ours.folder(), other.folder()}
    assert set(tmp_path.iterdir()) == living
    assert Path(ours.copy("s3://b/x.jsonl.zst", lambda target: target.write_text("x"))).read_text() == "x"
    for scratch in (ours, other):
        scratch.drop()
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_before_it_had_the_lock_leaves_nothing_and_nobody_else_loses_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cut, full, public = (Path(tempfile.mkdtemp(prefix=PREFIX)) for _ in range(3))
    (full / "results").touch()
    public.chmod(0o755)
    for folder in (cut, full, public):
        os.utime(folder, (0, 0))
    new = Path(tempfile.mkdtemp(prefix=PREFIX))
    delete_abandoned()
    assert set(tmp_path.iterdir()) == {full, public, new}
