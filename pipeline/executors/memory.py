"""What units need of memory, and whether the system has killed one for want of it. Imports nothing but the library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

VMSTAT = Path("/proc/vmstat")
MARGIN = 1.2  # of what a stage's units have needed so far, to ask for
LEAST_STEP = 64 << 20  # bytes


def kernel_kills() -> int:
    """Return how many processes this machine's kernel has killed as memory ran out; 0 where it does not say."""
    try:
        found = re.search(r"(?m)^oom_kill (\d+)$", VMSTAT.read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


@dataclass
class Memory:
    """What units of a stage have needed, in bytes, and what was found to be too little."""

    needed: float = 0.0
    too_little: float = 0.0

    def ask(self, most: float) -> int:
        """Return the bytes to ask for, of a node that has `most` at best; 0 while nothing is known.

        In steps of an eighth to a quarter: a worker goes from unit to unit only as long as all ask for the same.
        """
        wanted = int(max(MARGIN * self.needed, 2 * self.too_little))
        step = max(LEAST_STEP, 1 << max(0, wanted.bit_length() - 3))
        return int(min(-(-wanted // step) * step, most))

    def ran_out(self, asked: int, share: float) -> None:
        """Note that `asked` bytes were too little; of a unit that asked for none, its CPU's `share` of its node."""
        self.too_little = max(self.too_little, self.needed, asked or share)
