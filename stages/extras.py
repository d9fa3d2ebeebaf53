"""Packages that only some recipes need: the extras of the wheel."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


def extra_versions(packages: Iterable[str], needed_by: str, extra: str) -> dict[str, str]:
    """Return the versions of packages of an extra.

    needed_by: what needs them, and the verb. Raises ValueError where one is not installed.
    """
    try:
        return {name: metadata.version(name) for name in packages}
    except metadata.PackageNotFoundError as error:
        raise ValueError(f"{needed_by} {error.name}; pip install 'shardmill[{extra}]'") from None
