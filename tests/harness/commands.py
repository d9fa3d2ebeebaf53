"""Commands in processes of their own, as users have them, forked from one that has loaded what they load.

Loading takes longer than what most of them do. The process that forks is started once for each process of pytest, has
one thread and does nothing else; it ends with the connection to it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

REPO = Path(__file__).resolve().parents[2]
LIMIT = 120  # seconds that any one command may take
# What commands, runs and workers import when they are under way.
MODULES = ("pipeline.cli", "pipeline.engine.quarantine", "pipeline.make_context", "train.main")
MODULES += ("pipeline.executors.worker", "stages.estimate.mixtures", "train.artefact")
MOST = 1 << 20  # bytes of a request


def cli(*arguments: str, cwd: Path = REPO, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m pipeline` with these arguments and more in the environment, to its end."""
    return python(["-m", "pipeline", *arguments], cwd, {**os.environ, "COLUMNS": "200", **environment})


def python(
    words: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str] = os.environ,
    seconds: float = LIMIT,
    root: Path = REPO,
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS`, a module of this project with `-m` or a program of it, to its end, with nothing to read.

    root: where the project is loaded from, once; what is edited there later is read, but not run.

    Raises TimeoutExpired, as subprocess does, when that takes longer than `seconds`.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = Command(words, cwd, environment, out, err, root)
        try:
            status = command.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(command.pid, signal.SIGKILL)
            print(text_of(out), text_of(err))  # pytest shows it
            raise
        return subprocess.CompletedProcess(command.args, status, text_of(out), text_of(err))


class Command:
    """`python WORDS` under way, with the parts of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        out: IO[Any],
        err: IO[Any],
        root: Path = REPO,
    ) -> None:
        """out, err: where its output goes. root: as `python` has it."""
        self.args = [sys.executable, *words]
        self.returncode: int | None = None
        self.answers, theirs = socket.socketpair()
        with theirs:
            request = json.dumps([list(words), str(cwd), dict(environment)]).encode()
            socket.send_fds(server(root), [request], [out.fileno(), err.fileno(), theirs.fileno()])
        self.pid = self._number()

    def _number(self) -> int:
        """Read a line of what the server answers, and no byte more."""
        digits = b""
        while (byte := self.answers.recv(1)) not in (b"\n", b""):
            digits += byte
        return int(digits)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return how it ended. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self.answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._number()
            self.answers.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return how it ended, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def text_of(file: IO[bytes]) -> str:
    """Return what was written into a file."""
    file.seek(0)
    return file.read().decode()


@functools.cache
def server(root: Path) -> socket.socket:
    """Start the process that forks, with the project that lies in `root`; return the connection to it."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno()), str(root)]
        subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
    return ours


def serve(control: socket.socket) -> list[str]:
    """Fork a process for each request. Returns in each of them, with its words, as one that was just started."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for commands
    while True:
        request, ends, _, _ = socket.recv_fds(control, MOST, 3)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            words, cwd, environment = json.loads(request)
            pid = os.fork()
            if pid == 0:
                become(cwd, environment, ends)
                return list(words)
            with socket.socket(fileno=ends[2]) as answers:
                answers.sendall(f"{pid}\n".encode())
                answers.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
            os._exit(0)
        for end in ends:
            os.close(end)


def become(cwd: str, environment: dict[str, str], ends: list[int]) -> None:
    """Make this process one in a session of its own, in `cwd`, whose output goes into the files `ends`."""
    os.setsid()
    os.dup2(ends[0], 1)
    os.dup2(ends[1], 2)
    for end in ends:
        os.close(end)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)


def run(words: list[str]) -> None:
    """Run `python WORDS` in this process, which ends as Python does, but without taking apart all that was loaded."""
    status: object = None
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else status is not None)


def load() -> None:
    """Load what commands and workers load, the machine code of kernels and tables of all characters among it."""
    import pyarrow as pa

    from pipeline import commands
    from stages.filter.apply import apply_to_column
    from stages.filter.measure import text_hashes
    from stages.kernels.words import folded
    from stages.tokenizer.split import compiled_split

    names = [f"{commands.__name__}.{module.name}" for module in pkgutil.iter_modules(commands.__path__)]
    for name in (*MODULES, *names):
        importlib.import_module(name)
    text = pa.array(["a text"])
    apply_to_column(text, None, [("length", {"min_chars": 1, "max_chars": 9})])
    text_hashes(text)
    folded()
    compiled_split("gpt4", None)
    assert "huggingface_hub" not in sys.modules, "it reads the environment when it is loaded"
    gc.collect()
    gc.freeze()  # a command that ends looks at none of it again


if __name__ == "__main__":
    sys.path[0] = sys.argv[2]
    connection = socket.socket(fileno=int(sys.argv[1]))
    load()
    run(serve(connection))
