"""How a command on a run ends: an error is a line on standard error for people, and an exit status for programs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from train.monitor.text import printable
from train.redact import without_secrets


def complain(error: object) -> int:
    """Print an error, without secrets and what a terminal would obey, and return the exit status."""
    print(f"error: {printable(without_secrets(str(error)))}", file=sys.stderr)
    return 1


def run_command(main: Callable[[], int]) -> None:
    """Run a command and leave with its exit status. In front of `head` it ends without a word, as others do."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
