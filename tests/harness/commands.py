"""Commands in processes of their own, as users have them, forked from one that has loaded what they load.

Loading takes longer than what most of them do. The process that forks is started once for each process of pytest, has
one thread and does nothing else; it ends with the connection to it.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

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
    words: Sequence[str], cwd: Path, environment: Mapping[str, str] = os.environ, seconds: float = LIMIT
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS`, a module of this project with `-m` or a program of it, to its end, with nothing to read.

    Raises TimeoutExpired, as subprocess does, when that takes longer than `seconds`.
    """
    command = [sys.executable, *words]
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        request = json.dumps([list(words), str(cwd), dict(environment)]).encode()
        socket.send_fds(server(), [request], [out.fileno(), err.fileno(), theirs.fileno()])
        theirs.close()
        with ours.makefile() as answers:
            pid = int(answers.readline())
            ours.settimeout(seconds)
            try:
                status = int(answers.readline())
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
                print(text_of(out), text_of(err))  # pytest shows it
                raise subprocess.TimeoutExpired(command, seconds) from None
        return subprocess.CompletedProcess(command, status, text_of(out), text_of(err))


def text_of(file: IO[bytes]) -> str:
    """Return what was written into a file."""
    file.seek(0)
    return file.read().decode()


@functools.cache
def server() -> socket.socket:
    """Start the process that forks; return the connection to it."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
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
    """Load what commands and workers load, the machine code of kernels among it."""
    import pyarrow as pa

    from pipeline import commands
    from stages.filter.apply import apply_to_column
    from stages.filter.measure import text_hashes

    names = [f"{commands.__name__}.{module.name}" for module in pkgutil.iter_modules(commands.__path__)]
    for name in (*MODULES, *names):
        importlib.import_module(name)
    text = pa.array(["a text"])
    apply_to_column(text, None, [("length", {"min_chars": 1, "max_chars": 9})])
    text_hashes(text)
    assert "huggingface_hub" not in sys.modules, "it reads the environment when it is loaded"
    gc.collect()
    gc.freeze()  # a command that ends looks at none of it again


if __name__ == "__main__":
    sys.path[0] = str(REPO)
    connection = socket.socket(fileno=int(sys.argv[1]))
    load()
    run(serve(connection))
