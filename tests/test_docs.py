"""The pages for readers say what is so: what they name exists, their examples run, the generated page is current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_reference_is_current():
    command = [sys.executable, "-m", "pipeline", "schema", "reference"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    written = (ROOT / "docs" / "reference.md").read_text()
    assert printed == written, "docs/reference.md is not current; run: make docs"
