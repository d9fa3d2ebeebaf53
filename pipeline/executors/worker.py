"""One unit, run to its record: what happens inside a worker, whichever executor started it.

A worker of the pool serves units over a socket, one JSON message each way, and dies with its driver: the moment
the socket closes it exits, in the middle of a unit if need be.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import queue
import resource
import socket
import struct
import threading
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, cast

from pipeline.engine.executor import Fault, Reply, UnitSpec, find_work
from pipeline.engine.object_store import ObjectStore
from pipeline.engine.store import STAMP, Store, open_store
from pipeline.errors import DISK_FULL
from pipeline.executors.train_job import launcher
from stages.errors import DataError, TransientError, Unfinished
from stages.paths import escaped
from stages.stage import Record
from stages.task import Artifact, Task
from train.bucket import BucketError
from train.files import sha256_file
from train.redact import without_secrets

TRANSIENT = (TransientError, ConnectionError, TimeoutError, InterruptedError)
FILES_AT_A_TIME = 4  # hashed and synced; a unit seldom has more


@functools.lru_cache(maxsize=1)
def opened_store(out: str) -> Store:
    """Return the store at `out`, with the client of its bucket, which takes longer to make than a small unit to run."""
    return open_store(out)


def run_unit(spec: UnitSpec) -> Reply:
    """Run the unit described by `spec` and return its record, or how it failed."""
    store = opened_store(spec["out"])
    attempt = uuid.uuid4().hex[:12]
    try:
        folder = store.attempt_folder(spec["stage"], spec["key"])
    except OSError as error:
        return {"error": fault_of(error)}
    try:
        return {"record": _run(store, spec, attempt, folder).to_dict()}
    except Exception as error:
        for leftover in folder.glob(f"{attempt}.*"):
            leftover.unlink(missing_ok=True)
        return {"error": fault_of(error)}
    finally:
        store.drop_scratch()


def _run(store: Store, spec: UnitSpec, attempt: str, folder: Path) -> Record:
    """Call the work of a unit, put its outputs and then its record into the store."""
    _reset_peak()
    started = time.time()
    inputs = [Artifact(**artifact) for artifact in spec["inputs"]]
    task = Task(spec["params"], inputs, folder, attempt, store.fetch, spec["places"])
    task.read_bytes = store.read_bytes if isinstance(store, ObjectStore) else None
    task.launch = launcher(spec["executor"])
    find_work(spec["work"])(task)
    outputs = _store_outputs(store, spec, task.outputs)
    finished = time.time()
    record = Record(
        key=spec["key"],
        stage=spec["stage"],
        label=spec["label"],
        inputs=[artifact.digest for artifact in inputs],
        outputs=outputs,
        counts=dict(sorted(task.counts.items())),
        seconds=round(finished - started, 3),
        peak_mb=_peak_mb(),
        versions=spec["versions"],
        started=started,
        finished=finished,
        attempt=attempt,
        node=spec.get("node") or socket.gethostname(),
        tries=spec.get("tries", []),
    )
    return store.put_record(record)


def _store_outputs(store: Store, spec: UnitSpec, outputs: list[Artifact]) -> list[Artifact]:
    """Put outputs into the store and return them as the record names them.

    Files are hashed and made durable side by side, each of them once.
    """
    known_hashes = {output.path: output.sha256 for output in outputs if output.sha256}
    by_path = {output.path: output for output in outputs}  # slices of one file share it

    def seal(output: Artifact) -> Artifact:
        sha256 = known_hashes.get(output.path) or sha256_file(output.path)
        return store.seal(spec["stage"], spec["key"], output, sha256)

    with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
        files = dict(zip(by_path, pool.map(seal, by_path.values()), strict=True))
    stored = []
    for output in outputs:
        file = files[output.path]
        meta = {**output.meta, STAMP: file.meta[STAMP]}
        digest = output.digest or file.sha256
        stored.append(replace(output, path=file.path, bytes=file.bytes, sha256=file.sha256, digest=digest, meta=meta))
    return stored


def fault_of(error: Exception) -> Fault:
    """Describe an error of a unit: whether it is tried again or ends the run, and what people read."""
    message = escaped(" ".join(str(error).split())) or type(error).__name__
    kind: Literal["transient", "permanent", "fatal", "unfinished"]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = "fatal"
        message = f"{DISK_FULL} ({message})"
    elif isinstance(error, MemoryError):
        kind, message = "transient", "out of memory; use fewer --workers"
    elif isinstance(error, TRANSIENT):
        kind = "transient"
    elif isinstance(error, DataError | BucketError):
        kind = "permanent"
    elif isinstance(error, Unfinished):
        kind = "unfinished"
    else:
        kind, message = "permanent", f"{type(error).__name__}: {message}"
    return {"kind": kind, "message": without_secrets(message), "trace": without_secrets(traceback.format_exc())}


def _reset_peak() -> None:
    """Let the kernel count peak memory from here (Linux); elsewhere the peak is the process's own."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mb() -> float:
    """Return the peak of this process's memory in MiB."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def send(stream: IO[bytes], message: Any) -> None:
    """Write one length-prefixed JSON message."""
    data = json.dumps(message).encode()
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message. Raises EOFError when the other side is gone."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    (length,) = struct.unpack("<Q", head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return json.loads(data)


def serve(connection: socket.socket) -> None:
    """Serve units until the other side closes `connection`. Never returns."""
    requests: queue.Queue[UnitSpec] = queue.Queue()
    stream = cast(BinaryIO, connection.makefile("rwb"))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints is not a result of the command

    def listen() -> None:
        while True:
            try:
                requests.put(receive(stream))
            except (EOFError, OSError):
                os._exit(0)  # the driver is gone: nobody would read the reply

    threading.Thread(target=listen, daemon=True).start()
    while True:
        send(stream, run_unit(requests.get()))
