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
        self.memory_share = 0.0  # bytes of that one for each of its CPUs
        self.whole_ids: dict[str, str] = {}  # short id -> id, of all nodes that were seen
        self.alive: dict[str, str] = {}  # short id -> the node as records name it, host/id
        self._reasons: dict[str, str] = {}  # short id -> what Ray says of why it died
        self._died: dict[str, float] = {}  # short id -> when it was first seen dead, on the monotonic clock
        self._asked = 0.0  # when the head was asked first what it has not answered yet, on the monotonic clock
        self._ended = threading.Event()
        self._look()
        threading.Thread(target=self._keep_looking, daemon=True).start()

    def _look(self) -> None:
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()
        alive = [node for node in nodes if node["Alive"]]
        self.cpus = int(sum(node["Resources"].get("CPU", 0) for node in alive))
        most: dict[str, float] = max(
            (node["Resources"] for node in alive), key=lambda has: has.get("memory", 0.0), default={}
        )
        self.most_memory = most.get("memory", 0.0)
        self.memory_share = self.most_memory / max(1.0, most.get("CPU", 0.0))
        self.whole_ids |= {node["NodeID"][:ID_DIGITS]: node["NodeID"] for node in nodes}
        for node in nodes:
            if not node["Alive"]:
                self._reasons[node["NodeID"][:ID_DIGITS]] = str(node.get("DeathReasonMessage") or "")
                self._died.setdefault(node["NodeID"][:ID_DIGITS], time.monotonic())
        short = [node["NodeID"][:ID_DIGITS] for node in alive]
        self.alive = {name: f"{node['NodeManagerHostname']}/{name}" for name, node in zip(short, alive, strict=True)}
        self._asked = 0.0

    def _keep_looking(self) -> None:
        while not self._ended.wait(LOOK_EVERY):
            self._asked = self._asked or time.monotonic()
            try:
                self._look()
            except Exception:  # of Ray, or of its client: the head does not answer, and `silent` grows
                continue

    def silent(self) -> float:
        """Return for how many seconds the head has not answered; those in which this process was stopped are none."""
        asked = self._asked
        return time.monotonic() - asked if asked else 0.0

    def dead_for(self, seconds: float) -> set[str]:
        """Return the short ids of nodes that have been dead for so long."""
        now = time.monotonic()
        return {node for node, since in dict(self._died).items() if now - since > seconds}

    def difference(self, before: dict[str, str]) -> str:
        """Say which nodes are new since `alive` was `before`, and which are gone, and why."""
        new = [node for name, node in sorted(self.alive.items()) if name not in before]
        gone = [
            f"{node} ({self._reasons.get(name) or 'Ray does not say why'})"
            for name, node in sorted(before.items())
            if name not in self.alive
        ]
        named = [("new", new), ("gone", gone)]
        return "; ".join(f"{what}: {', '.join(nodes)}" for what, nodes in named if nodes)

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def __str__(self) -> str:
        count = len(self.alive)
        return f"{self.cpus} CPUs on {count} node{'s' * (count != 1)}"
