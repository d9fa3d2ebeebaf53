"""The trainer in a bare GPU image: torch, numpy, safetensors, the standard library; and it starts in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from trainer_harness import ROOT

START_SECONDS = 10  # issue 4, on a CPU; a loaded machine may take three times that

# Refuses every package that is imported by code of train/, and that a bare image lacks. (torch itself may try others:
# it looks for what is installed and goes on without.)
BLOCKER = """
import builtins, runpy, sys
plain = builtins.__import__
allowed = {'torch', 'numpy', 'safetensors', 'train', *sys.stdlib_module_names}
def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get('__name__', '')
    if level == 0 and (importer == '__main__' or importer.split('.')[0] == 'train'):
        if name.split('.')[0] not in allowed:
            raise ModuleNotFoundError(f'{importer} imports {name}', name=name)
    return plain(name, globals, locals, fromlist, level)
builtins.__import__ = guarded
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.slow
def test_a_run_needs_torch_numpy_and_safetensors_alone_and_starts_soon(pretrain, tmp_path):
    out = tmp_path / "run"
    start, began = time.time(), os.times()
    settings = [f"train.out={out}", "train.steps=1", "train.eval_tokens=64", "train.schedule.warmup=0"]
    command = [sys.executable, "-c", BLOCKER, str(ROOT), str(ROOT / "train/main.py"), "--manifest", str(pretrain)]
    done = subprocess.run([*command, "--set", *settings], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    ended = os.times()
    assert done.returncode == 0, done.stdout + done.stderr
    first_line = (out / "run.json").stat().st_mtime - start
    worked = ended.children_user + ended.children_system - began.children_user - began.children_system
    assert min(first_line, worked) < START_SECONDS, f"{first_line:.1f} s until run.json, {worked:.1f} s of processor"


def test_the_guard_refuses_what_an_image_lacks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import pyarrow")
    done = subprocess.run([sys.executable, "-c", BLOCKER, str(ROOT), str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "__main__ imports pyarrow" in done.stderr
