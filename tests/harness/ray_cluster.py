"""A real Ray cluster of several nodes on loopback, held by a process of its own: nodes come, go and are killed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from engine_harness import descendants, gone, kill, marked

SIZE: dict[str, Any] = {"object_store_memory": 80 << 20, "memory": 4 << 30, "include_dashboard": False}
NOTICE = 5.0  # seconds between the signal and the death of a node that is preempted


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Wire:
    """A port that leads to another, until it is cut."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Let nothing through any more, and nobody in."""
        for end in (self.listener, *self.ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def start_times() -> dict[int, str]:
    """When each process began, by its number."""
    from pipeline.executors.ray_cleanup import parents  # not as the process that holds a cluster, which lacks it

    return {pid: began for pid, (_, began) in parents().items()}


class RayCluster:
    """A head and more nodes, with a token. `environment` is what workers have beside it, such as a bucket's address."""

    def __init__(self, cpus: tuple[int, ...], environment: dict[str, str] | None = None, client: bool = False):
        """cpus: of each node, the head first. client: Ray Client's port is open too."""
        self.mark = uuid.uuid4().hex
        self.token = secrets.token_hex(32)
        self.client_port = free_port() if client else 0
        self.environment = environment or {}
        self.orphans: dict[int, str] = {}  # pid -> when it began
        self.altered: dict[str, subprocess.Popen[bytes]] = {}
        ours = {"SHARDMILL_TEST": self.mark, **self.environment}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.client_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd="/",
            env={**os.environ, **self.driver_environment(), **ours, "PYTHONPATH": str(Path(__file__).parent)},
        )
        self.address = str(self.do("head", cpus[0]))
        self.nodes = [self.add(count) for count in cpus[1:]]

    def driver_environment(self) -> dict[str, str]:
        """What a driver needs to join."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return {**token, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}

    def do(self, *request: Any) -> Any:
        """Ask the process that holds the cluster to do something, and return its answer."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the cluster's process ended at {request}"
        return json.loads(answer)

    def add(self, cpus: int) -> str:
        """Add a node, and return its id as records have it."""
        return str(self.do("add", cpus))

    def remove(self, node: str) -> None:
        """Kill all processes of a node at once, as when its machine vanishes."""
        self.do("remove", node)

    def freeze(self, node: str) -> None:
        """Stop all processes of a node, as when nothing of it comes through; `thaw` lets them go on."""
        self._signal(node, signal.SIGSTOP)

    def thaw(self, node: str) -> None:
        """Let the processes of a node go on where they were."""
        self._signal(node, signal.SIGCONT)

    def _signal(self, node: str, number: int) -> None:
        raylet = int(self.do("pid", node))
        for pid in (*descendants(raylet), raylet):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def preempt(self, node: str) -> None:
        """Ask all processes of a node to end, and kill them a little later, as when its machine is taken back."""
        self._signal(node, signal.SIGTERM)
        time.sleep(NOTICE)
        self.remove(node)

    def kill_raylet(self, node: str) -> None:
        """Kill the process that speaks for a node; its workers go on, until the next such death."""
        self.bury()
        began = start_times()
        self.orphans = {pid: began[pid] for pid in descendants(int(self.do("pid", node))) if pid in began}
        self.do("raylet", node)

    def bury(self) -> None:
        """Kill what a dead raylet left, unless its number is another process's by now."""
        now = start_times()
        for pid, began in self.orphans.items():
            if now.get(pid) == began:
                kill(pid)

    def busy_workers(self, node: str, stage: str = "") -> list[int]:
        """Return the processes of a node that run units now, of one stage or of any."""
        from stages.registry import STAGES

        below = descendants(int(self.do("pid", node)))
        names = {f"ray::{name}" for name in ([stage] if stage else STAGES)}
        return [pid for pid, said in below.items() if said.split(" ")[0] in names]

    def metrics_ports(self) -> list[int]:
        """Return the port of each node at which it serves metrics."""
        return list(map(int, self.do("metrics ports")))

    def kill_head(self) -> None:
        """Kill all processes of the head, the node that drivers here are on."""
        self.do("kill head")

    def add_altered(self, cpus: int, instead: dict[Path, Path], group: Path | None = None, **environment: str) -> str:
        """Add a node that sees other files: `instead` are path -> what lies there for it. Returns its mark.

        group: a control group that its processes are in. Skips the test where mounting is not permitted.
        """
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
            pytest.skip("mounting is not permitted here")
        mark = uuid.uuid4().hex
        steps = [f"mount --bind {shlex.quote(str(b))} {shlex.quote(str(a))}" for a, b in instead.items()]
        if group:
            steps.insert(0, f"echo $$ > {shlex.quote(str(group / 'cgroup.procs'))}")
        start = [sys.executable, __file__, self.address, str(cpus)]
        self.altered[mark] = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", " && ".join([*steps, f"exec {shlex.join(start)}"])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**os.environ, **self.environment, **self.driver_environment(), **environment, "SHARDMILL_TEST": mark},
        )
        return mark

    def remove_altered(self, mark: str) -> None:
        """Kill all processes of such a node."""
        for pid in marked(mark):
            kill(pid)
        self.altered.pop(mark).wait()
        assert gone(mark) == {}

    def close(self) -> None:
        """End all of it: workers show another environment than they were started with, so not by their mark alone."""
        below = descendants(self.process.pid).keys()
        kill(self.process.pid)
        self.process.wait()
        self.bury()
        for pid in below:
            kill(pid)
        for mark in list(self.altered):
            self.remove_altered(mark)
        for pid in marked(self.mark):
            kill(pid)
        assert gone(self.mark) == {}


def serve(client_port: int) -> None:
    """Hold a cluster and obey the lines of standard input."""
    from ray.cluster_utils import Cluster

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cluster: Any = None
    nodes: dict[str, Any] = {}
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        answer: Any = None
        if what == "head":
            port = {"ray_client_server_port": client_port} if client_port else {}
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": arguments[0], **SIZE, **port})
            answer = cluster.address
        elif what == "add":
            node = cluster.add_node(wait=False, num_cpus=arguments[0], **SIZE)
            answer = node.node_id[:8]
            nodes[answer] = node
        elif what == "remove":
            cluster.remove_node(nodes.pop(arguments[0]), allow_graceful=False)
        elif what == "pid":
            answer = nodes[arguments[0]].all_processes["raylet"][0].process.pid
        elif what == "metrics ports":
            answer = [node.metrics_export_port for node in cluster.list_all_nodes()]
        elif what == "raylet":
            nodes[arguments[0]].kill_raylet()
        else:
            cluster.remove_node(cluster.head_node, allow_graceful=False)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def serve_node(address: str, cpus: int) -> None:
    """Be one node of a cluster, as `Cluster.add_node` makes them, until killed."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    ports = {"min_worker_port": 0, "max_worker_port": 0, "node_manager_port": 0}
    place = {"gcs_address": address, "redis_address": address, "node_ip_address": "127.0.0.1"}
    params = RayParams(num_cpus=cpus, num_gpus=0, include_log_monitor=False, **SIZE, **ports, **place)
    params.dashboard_agent_listen_port = None
    Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
    signal.pause()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve_node(sys.argv[1], int(sys.argv[2]))
    serve(int(sys.argv[1]))
