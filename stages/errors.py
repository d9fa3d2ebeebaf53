"""What a unit of work may raise for the engine to understand, and the engine for a stage."""

from __future__ import annotations

from train.redact import without_secrets


class WorkError(Exception):
    """An error that may repeat what a client of a network says, and so leaves out secrets."""

    def __init__(self, message: str):
        super().__init__(without_secrets(message))


class DataError(WorkError):
    """The input itself is at fault. Says what, where, and how to mend it; never retried."""


class TransientError(WorkError):
    """The network, a busy server or a lost worker is at fault. The engine tries again, with backoff."""


class Unfinished(Exception):  # noqa: N818 - reads as what happened
    """The unit was asked to stop before its end and has saved what it did; never retried in the same run."""


class NotBuilt(Exception):  # noqa: N818 - a signal of the dry run, not an error
    """The dry run met a unit that has not run yet, so what depends on it cannot be known."""

    def __init__(self, stage: str):
        super().__init__(stage)
        self.stage = stage
