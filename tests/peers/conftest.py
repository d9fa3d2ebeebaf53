"""The readers of other trainers, written from their published formats, and a mixture for them to read."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "stages"), str(Path(__file__).parents[2])]
