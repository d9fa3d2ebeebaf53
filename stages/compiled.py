"""Compiled kernels: numba without the GIL, kept on disk, so that one process compiles and all others load.

Modules of kernels are called `stages/kernel_*.py`. Their machine code lies in a folder named after the contents of all
of them, because numba itself only notices a change in the file of the function that is called, not in those that it
calls. The folder is in `stages/__pycache__` (or where PYTHONPYCACHEPREFIX says), in the user's cache folder where that
cannot be written, or in NUMBA_CACHE_DIR. Processes that compile at the same time replace each other's equal files.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])
config: Any = numba.config
HERE = Path(__file__).parent


def folders() -> list[Path]:
    """Where machine code may be kept, best first."""
    if config.CACHE_DIR:
        return [Path(config.CACHE_DIR)]
    users = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return [Path(cache_from_source(__file__)).parent, Path(users) / "shardmill"]


@functools.cache
def cache_folder() -> str | None:
    """The folder for the kernels as they are now; None, and a line that says so, where none can be written."""
    total = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(HERE.glob("kernel_*.py"))))
    tried = folders()
    for base in tried:
        folder = base / f"kernels-{total.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return str(folder)
        except OSError:
            continue
    where = " nor ".join(map(str, tried))
    print(f"every process compiles the rules: {where} cannot be written; set NUMBA_CACHE_DIR", file=sys.stderr)
    return None


def compiled(function: F) -> F:
    """`function` as machine code."""
    folder, before = cache_folder(), config.CACHE_DIR
    config.CACHE_DIR = folder or before
    try:
        kernel: Any = numba.njit(nogil=True, error_model="numpy", cache=folder is not None)(function)
    finally:
        config.CACHE_DIR = before
    return cast(F, kernel)


int64: Any = numba.int64  # in kernels every number is of this kind, so that each is compiled once
uint64: Any = numba.uint64


@intrinsic
def _load(_: Any, data: Any, i: Any) -> Any:
    """Eight bytes of a uint8 array from `i` on, as a little-endian number, aligned or not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        at = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(at, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, types.int64), generate


@intrinsic
def _get(_: Any, array: Any, i: Any) -> Any:
    """Element `i`, not below 0, of an array of integers, in the order in which they lie, as int64 (or uint64).

    numba's own indexing asks each time whether `i` is below 0.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0].dtype
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        value = builder.load(builder.gep(found.data, [arguments[1]]))
        if kind.bitwidth == 64:
            return value
        widen = builder.sext if kind.signed else builder.zext
        return widen(value, ir.IntType(64))

    return (types.uint64 if array.dtype == types.uint64 else types.int64)(array, types.int64), generate


load: Any = _load
get: Any = _get
