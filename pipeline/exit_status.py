"""How a command ends: an error is a line on standard error for people, and an exit status for programs."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path

import typer

from pipeline.errors import DISK_FULL, Stopped, UserError
from stages.errors import DataError, TransientError
from train.data.manifest import ManifestError
from train.monitor.text import printable
from train.redact import without_secrets


def complain(text: str) -> None:
    """Print an error, which may repeat text of others and addresses, without what a terminal would obey and secrets."""
    from stages.paths import escaped

    print(printable(escaped(without_secrets(text))), file=sys.stderr)


def report_error(error: Exception, debug: bool) -> int:
    """Print what a person should know of an error, and return the exit status."""
    if isinstance(error, typer.Abort):
        return 1
    if isinstance(error, BrokenPipeError):  # nobody reads our output any more, and Python flushes it at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if hasattr(error, "format_message"):  # one of click's usage errors
        at = getattr(error, "ctx", None)
        complain(f"error: {error.format_message()}{f' (`{at.command_path} --help` has more)' if at else ''}")
        return 2
    if debug:
        traceback.print_exception(error)
    if isinstance(error, UserError | DataError | TransientError | ManifestError):
        complain(f"{'stopped' if isinstance(error, Stopped) else 'error'}: {error}")
        return getattr(error, "exit_code", 1)
    if isinstance(error, OSError):
        where = f" ({Path(error.filename)})" if isinstance(error.filename, str) else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f": {DISK_FULL}"
        complain(f"error: {error.strerror or error}{where}")
        return 1
    if not debug:
        fault = f"{type(error).__name__}: {error} (a fault of ours; --debug shows where)"
        complain(f"error: {fault}")
    return 1
