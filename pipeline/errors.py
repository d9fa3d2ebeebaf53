"""Errors that people read: one or two lines that say what, where and how to mend it."""

from __future__ import annotations

DISK_FULL = "no space left on the disk of --out; free some and run the same command again"


class UserError(Exception):
    """Wrong usage, a wrong recipe, or input that cannot work. Printed without a stack trace."""

    exit_code = 1


class UsageError(UserError):
    """The command line or the recipe is wrong: exit status 2."""

    exit_code = 2


class UnitFailed(UserError):  # noqa: N818 - reads as what happened
    """A unit failed for good. With `fatal` (a full disk) the run ends at once; else the rest goes on."""

    def __init__(self, stage: str, label: str, message: str, fatal: bool = False):
        super().__init__(f"{stage} {label}: {message}")
        self.stage, self.label, self.message, self.fatal = stage, label, message, fatal


class Stopped(UserError):  # noqa: N818 - reads as what happened
    """A signal ended the run before its end: exit status 75, EX_TEMPFAIL, "not done"."""

    exit_code = 75
