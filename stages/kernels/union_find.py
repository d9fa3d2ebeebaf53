"""Union-find over integers, compiled."""

from __future__ import annotations

from typing import Any

from stages.kernels.jit import compiled


@compiled
def root(parent: Any, i: int) -> int:
    """Return the least element of the set of `i`, and halve the path to it."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@compiled
def unite(parent: Any, left: Any, right: Any) -> None:
    """Unite left[k] with right[k] for all k, then let `parent` (n,), at first its own index, name each set's least."""
    for k in range(len(left)):
        a, b = root(parent, left[k]), root(parent, right[k])
        if a < b:
            parent[b] = a
        else:
            parent[a] = b
    for i in range(len(parent)):
        parent[i] = root(parent, i)
