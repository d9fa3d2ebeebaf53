"""Keep pandas out of our processes: nothing here uses it, but pyarrow imports it, where it is installed, as soon as
an array is made of Python values: half a second and 55 MB for each process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class WithoutPandas(MetaPathFinder):
    """Answers `import pandas` as if it were not installed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Leave every module to the other finders, but for pandas: raise ModuleNotFoundError."""
        if name == "pandas":
            raise ModuleNotFoundError("pandas is kept out of this process", name=name)


def without_pandas() -> None:
    """Keep pandas out of this process and of those forked from it."""
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, WithoutPandas())
