"""For every test: what the processes that it starts may keep, and the order of the files."""

from __future__ import annotations

import os

import pytest

# Some hundred processes are started. Where the environment forbids them to keep compiled modules, compiling the project
# is a third of what each does.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The files that take longest, from half a minute up. They come first, so that workers who get a file each
# (`-n 2 --dist loadfile --no-loadscope-reorder`) end together.
LONG = (
    *("test_faults.py", "test_hub.py", "test_kill.py", "test_code.py", "test_engine.py", "test_recipes.py"),
    *("test_sentinel.py", "test_layout.py", "test_predict.py", "test_lineage.py", "test_resume.py", "test_cli.py"),
    *("test_five_sources.py", "test_find.py", "test_merge.py", "test_rules_compiled.py", "test_trainer_run.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file; tests of one file stay in their order."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
