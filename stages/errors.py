"""What a unit of work may raise for the engine to understand."""

from __future__ import annotations


class DataError(Exception):
    """The input itself is at fault. Says what, where, and how to mend it; never retried."""


class TransientError(Exception):
    """The network, a busy server or a lost worker is at fault. The engine tries again, with backoff."""


class Unfinished(Exception):  # noqa: N818 - reads as what happened
    """The unit was asked to stop before its end and has saved what it did; never retried in the same run."""
