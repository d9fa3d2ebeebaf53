"""A control group with a limit of memory, in which the kernel kills as on a machine that has no more."""

from __future__ import annotations

import contextlib
import shlex
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

# Where each version of control groups keeps those of memory, and the names of what bounds them.
PLACES = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


@contextlib.contextmanager
def memory_limit(megabytes: int) -> Iterator[Path]:
    """Give a new group with that limit. Skips the test where none can be made."""
    for base, limit in PLACES:
        group = base / f"shardmill-{uuid.uuid4().hex[:8]}"
        try:
            group.mkdir()
        except OSError:
            continue
        if not (group / limit).exists():
            group.rmdir()
            continue
        (group / limit).write_text(str(megabytes << 20))
        try:
            yield group
        finally:
            for _ in range(50):  # until its last process is gone
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.2)
        return
    pytest.skip("no control group of memory can be made here")


def inside(group: Path, command: list[str]) -> list[str]:
    """Return a command that runs `command` in a group."""
    return ["sh", "-c", f"echo $$ > {shlex.quote(str(group / 'cgroup.procs'))}; exec {shlex.join(command)}"]
