"""Compiled kernels: numba without the GIL, kept on disk, so that one process compiles and all others load.

The modules of this folder are the kernels. Their machine code lies in a folder named after the contents of all
of them and the processor, because numba by itself notices only a change in the file of the function that is called,
and keeps a clone's code from another clone. The folder is in the user's cache folder, or in its `__pycache__` where
that cannot be written; NUMBA_CACHE_DIR names another. Of processes that want the same kernel at once, one compiles it.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from llvmlite import binding, ir
from numba import types
from numba.core import caching, cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])
config: Any = numba.config
HERE = Path(__file__).parent


def folders() -> list[Path]:
    """Return where machine code may be kept, best first."""
    if config.CACHE_DIR:
        return [Path(config.CACHE_DIR)]
    users = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return [Path(users) / "shardmill", Path(cache_from_source(__file__)).parent]


def digest() -> str:
    """Return a digest of the kernels as they are now, and of the processor they are compiled for."""
    total = hashlib.sha256(binding.get_host_cpu_name().encode() + binding.get_host_cpu_features().flatten().encode())
    for file in sorted(HERE.glob("*.py")):
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


@functools.cache
def cache_folder() -> str | None:
    """Return the folder for machine code; None, and print a line that says so, where none can be written."""
    tried = folders()
    for base in tried:
        folder = base / f"kernels-{digest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return str(folder)
        except (OSError, RuntimeError):
            continue
    where = " nor ".join(map(str, tried))
    print(f"every process compiles the rules: {where} cannot be written; set NUMBA_CACHE_DIR", file=sys.stderr)
    return None


class Locator(caching._CacheLocator):
    """Tells numba where the machine code of a kernel lies, wherever the clone itself lies."""

    def __init__(self, function: Any):
        self.function = function

    def get_cache_path(self) -> str | None:
        """Return the folder."""
        return cache_folder()

    def get_source_stamp(self) -> str:
        """Return nothing to compare: the folder's name says what it was made from."""
        return ""

    def get_disambiguator(self) -> str:
        """Tell functions of one name apart."""
        return str(self.function.__code__.co_firstlineno)

    @classmethod
    def from_function(cls, function: Any, file: str) -> Locator | None:
        """Return a locator, for kernels alone."""
        return cls(function) if Path(file).parent == HERE else None


cast(list[Any], caching.CacheImpl._locator_classes).insert(0, Locator)


def compiled(function: F) -> F:
    """Compile `function`. It can make no arrays, and so no call counts references to those that it is given."""
    folder = cache_folder()
    options: Any = {"nogil": True, "error_model": "numpy", "_nrt": False, "cache": folder is not None}
    kernel = numba.njit(**options)(function)
    if folder is not None:
        lock = Path(folder) / f"{function.__name__}-{function.__code__.co_firstlineno}.lock"
        kernel.compile = one_at_a_time(kernel.compile, lock)
    return cast(F, kernel)


def one_at_a_time(compile_kernel: Callable[..., Any], lock: Path) -> Callable[..., Any]:
    """Let one process compile a kernel; those that waited for it find its machine code on the disk.

    numba's own lock comes first: another thread must not hold it and wait for this file. Where files cannot be locked
    nobody waits.
    """

    def compile_alone(signature: Any) -> Any:
        with contextlib.ExitStack() as held:
            held.enter_context(global_compiler_lock)
            with contextlib.suppress(OSError):
                file = held.enter_context(lock.open("w"))
                fcntl.flock(file, fcntl.LOCK_EX)
            return compile_kernel(signature)

    return compile_alone


int64: Any = numba.int64  # in kernels every number is of this kind, so that each is compiled once
uint64: Any = numba.uint64


@intrinsic
def _load(_: Any, data: Any, i: Any) -> Any:
    """Return eight bytes of uint8 elements from `i` on, as a little-endian number, aligned or not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        at = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(at, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, types.int64), generate


@intrinsic
def _get(_: Any, array: Any, i: Any) -> Any:
    """Return element `i`, not below 0, of integers, in the order in which they lie, as int64 (or uint64).

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


@intrinsic
def _lowest(_: Any, bits: Any) -> Any:
    """Return the place of the lowest bit that is set in a uint64, from 0, as int64; 64 if none is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def _copy(_: Any, out: Any, o: Any, data: Any, i: Any, size: Any) -> Any:
    """Copy `size` elements of uint8 from `i` of `data` to `o` of `out`; the two do not overlap."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, at = (context.make_array(signature.args[k])(context, builder, arguments[k]) for k in (0, 2))
        here, there = builder.gep(to.data, [arguments[1]]), builder.gep(at.data, [arguments[3]])
        memcpy: Any = cgutils.raw_memcpy
        memcpy(builder, here, there, arguments[4], 1)
        return context.get_dummy_value()

    return types.void(out, types.int64, data, types.int64, types.int64), generate


load: Any = _load
get: Any = _get
copy: Any = _copy
lowest: Any = _lowest
