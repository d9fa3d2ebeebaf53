"""For every test: what the processes that it starts may keep, and the order of the files."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
from hypothesis import settings

# Some hundred processes are started. Where the environment forbids them to keep compiled modules, compiling the project
# is a third of what each does.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell's `&` makes what it starts ignore Ctrl-C, and a process that ignores a signal hands that on.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes is the machine's affair: a busy one would fail a test that is right.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file, the one with most slow tests first; tests of one file stay in their order.

    Workers who get a file each (`-n 2 --dist loadfile --no-loadscope-reorder`) then end together.
    """
    slow_tests = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow_tests[item.path])
