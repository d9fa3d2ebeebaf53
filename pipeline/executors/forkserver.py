"""Workers that start at once: one process holds all that a worker imports, and forks each worker.

It is itself forked from the driver, early, while that has no second thread that might hold a lock; elsewhere (not
Linux, or threads already run, those of a bucket's client among them) it is a fresh interpreter that imports for
itself, once. The server has one thread and does nothing else. It and its workers end when the driver's end of their
sockets closes, however that happens.

The forkserver of `multiprocessing` always imports afresh: 0.8 s of work before its first worker, against 0.3 s here,
or 0.05 s where the driver has loaded the kernels' compiler, to look at samples before a first build.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

from pipeline.engine.signals import ignore_signals
from pipeline.executors.no_pandas import without_pandas
from train import bucket

REQUEST = struct.Struct("<cq")  # START, 0 with the worker's socket; or WAIT, pid
ANSWER = struct.Struct("<q")  # the pid, or the exit status
START, WAIT = b"s", b"w"
LAST_WORDS = 2.0  # seconds to wait at the end for what workers wrote last
# One thread a worker in the libraries: there are as many workers as cores.
THREADS = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class ForkServer:
    """The driver's handle. Its calls raise ConnectionError when the server itself was killed.

    What the server, the workers and the programs they start write to standard error comes through a pipe, so that it
    can be shown above the live display and not in the middle of it.
    """

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        said, stderr = os.pipe()
        self.said = os.fdopen(said, encoding="utf-8", errors="replace")
        self.relay: threading.Thread | None = None
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        if sys.platform == "linux" and threading.active_count() == 1 and not bucket.is_in_use():
            sys.stdout.flush()
            sys.stderr.flush()
            self.pid = os.fork()
            if self.pid == 0:
                self.control.close()
                self.said.close()
                os.dup2(stderr, 2)
                os.close(stderr)
                run_server(theirs)
        else:
            end = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.executors.forkserver", str(end)], pass_fds=[end], stderr=stderr
            )
        theirs.close()
        os.close(stderr)

    def show(self, line: Callable[[str], None]) -> None:
        """Call `line` with each line that workers write, in a thread of its own."""

        def relay() -> None:
            for text in self.said:
                line(text.rstrip("\n"))

        self.relay = self.relay or threading.Thread(target=relay, daemon=True)
        if not self.relay.ident:
            self.relay.start()

    def start_worker(self) -> tuple[int, socket.socket]:
        """Start a worker; return its pid, and a connection to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            return self._ask(START, 0, theirs), ours

    def wait(self, pid: int) -> int:
        """Wait for a worker to end and return its exit status."""
        return self._ask(WAIT, pid)

    def _ask(self, what: bytes, pid: int, end: socket.socket | None = None) -> int:
        """Send one request, with `end` of a worker's connection, and return the answer."""
        with self.lock:
            socket.send_fds(self.control, [REQUEST.pack(what, pid)], [end.fileno()] if end else [])
            answer = self.control.recv(ANSWER.size)
        if len(answer) < ANSWER.size:
            raise ConnectionError("the process that starts workers is gone")
        (value,) = ANSWER.unpack(answer)
        return int(value)

    def close(self) -> None:
        """End the server; workers end when their own connections close."""
        self.control.close()
        if self.process is not None:
            self.process.wait()
        elif self.pid:
            os.waitpid(self.pid, 0)
            self.pid = 0
        if self.relay is not None:
            self.relay.join(LAST_WORDS)
        if self.relay is None or not self.relay.is_alive():
            self.said.close()


def run_server(control: socket.socket) -> None:
    """Fork workers until the driver is gone. Never returns."""
    status = 1
    try:
        ignore_signals()
        # Ctrl-C goes to the whole group, and the driver answers it for all. What a worker starts ignores it too.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ.update(THREADS)
        without_pandas()
        _serve(control)
        status = 0
    finally:
        os._exit(status)


def _serve(control: socket.socket) -> None:
    """Answer requests until the driver's end of `control` closes. In a worker, serve units: never returns there."""
    importlib.import_module("stages.kernels.jit")  # the compiler of kernels, once for all workers: a driver needs none
    from pipeline.executors.worker import serve

    while True:
        request, ends, _, _ = socket.recv_fds(control, REQUEST.size, 1)
        if len(request) < REQUEST.size:
            return
        what, answer = REQUEST.unpack(request)
        if what == START:
            answer = os.fork()
            if answer == 0:
                control.close()
                serve(socket.socket(fileno=ends[0]))
            os.close(ends[0])
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(answer, 0)[1])
        control.sendall(ANSWER.pack(answer))


if __name__ == "__main__":
    import stages.registry  # noqa: F401 - what every worker needs

    run_server(socket.socket(fileno=int(sys.argv[1])))
