"""The nodes of a Ray cluster, looked at each second by a thread of its own: the head may not answer for long."""

from __future__ import annotations

import threading
import time
from typing import Any

from pipeline.executors.ray_node import ID_DIGITS

LOOK_EVERY = 1.0  # seconds


class Nodes:
    """What the cluster has now. Ray has been started."""

    def __init__(self) -> None:
        self.cpus = 0  # of all nodes that live
        self.most_memory = 0.0  # bytes of the node that has most
        self._alive: set[str] = set()
        self._died: dict[str, float] = {}  # short id -> when it was first seen dead, on the monotonic clock
        self._answered = time.monotonic()
        self._ended = threading.Event()
        self._look()
        threading.Thread(target=self._keep_looking, daemon=True).start()

    def _look(self) -> None:
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()
        alive = [node for node in nodes if node["Alive"]]
        self.cpus = int(sum(node["Resources"].get("CPU", 0) for node in alive))
        self.most_memory = max((node["Resources"].get("memory", 0.0) for node in alive), default=0.0)
        self._alive = {node["NodeID"][:ID_DIGITS] for node in alive}
        for node in nodes:
            if not node["Alive"]:
                self._died.setdefault(node["NodeID"][:ID_DIGITS], time.monotonic())
        self._answered = time.monotonic()

    def _keep_looking(self) -> None:
        while not self._ended.wait(LOOK_EVERY):
            try:
                self._look()
            except Exception:  # of Ray, or of its client: the head does not answer, and `silent` grows
                continue

    def silent(self) -> float:
        """Return the seconds since the head last answered."""
        return time.monotonic() - self._answered - LOOK_EVERY

    def dead_for(self, seconds: float) -> set[str]:
        """Return the short ids of nodes that have been dead for so long."""
        now = time.monotonic()
        return {node for node, since in dict(self._died).items() if now - since > seconds}

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def __str__(self) -> str:
        count = len(self._alive)
        return f"{self.cpus} CPUs on {count} node{'s' * (count != 1)}"
