"""One HTTP client for all that this process asks of a hub: patient with a busy one, and few requests at a time.

huggingface_hub sends every request through one client, whoever makes it: its file system, `datasets`, the ranges of
`stages.sources.hub`. The client here is its own with another `send`: what may pass (429, 5xx, a timeout, a reset, a
body cut short) is asked again after a pause that every thread of the process keeps, as long as `Retry-After` says or
twice as long as the last one. A request gives up after GIVE_UP_SECONDS with a TransientError; the engine then tries the
unit again, five times, so that half an hour of trouble ends a run and less does not.
"""

from __future__ import annotations

import email.utils
import functools
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from stages.errors import TransientError

MAX_REQUESTS = 8  # requests of a process
GIVE_UP_SECONDS = 300.0  # seconds for one request, pauses and all: the hub counts requests by five minutes
CONNECT_TRIES = 4  # tries at a host that has no address or refuses connections
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds
TIMEOUT = 30.0  # seconds to connect, and between two pieces of an answer, where the caller sets none
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
WINDOW = re.compile(r";\s*r=0\s*;\s*t=(\d+)")  # of the header `ratelimit`: none left, and seconds to the next window


class SharedPause:
    """A moment before which no thread of this process sends."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.end = 0.0  # of time.monotonic

    def extend(self, seconds: float) -> None:
        """Hold every request back for `seconds` from now, or longer if that was agreed before."""
        with self.lock:
            self.end = max(self.end, time.monotonic() + seconds)

    def wait(self) -> None:
        """Return once it is over."""
        while (left := self.end - time.monotonic()) > 0:
            time.sleep(left)


SHARED_PAUSE = SharedPause()
REQUESTS = threading.BoundedSemaphore(MAX_REQUESTS)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return seconds that the answer asks to wait: `Retry-After` as a number or a date, or the hub's `ratelimit`."""
    if found := WINDOW.search(headers.get("ratelimit", "")):
        return float(found[1])
    value = headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def with_retries(send: Callable[..., Any], library: Any) -> Callable[..., Any]:
    """Return `Client.send` of the HTTP `library` with retries while there is hope. It raises TransientError.

    The message has neither query nor headers: addresses of a CDN are signed, and headers hold the token.
    """

    def sending(request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request, again after a pause as long as the answer is that of a server in trouble."""
        given = request.extensions.get("timeout") or {}
        limits = {what: given.get(what) or TIMEOUT for what in ("connect", "read", "write", "pool")}
        request.extensions["timeout"] = limits
        started, tries = time.monotonic(), 0
        while True:
            SHARED_PAUSE.wait()
            pause, unreachable = None, False
            try:
                with REQUESTS:
                    response = send(request, stream=stream, **options)
                if response.status_code not in BUSY:
                    return response
                problem, pause = f"status {response.status_code}", retry_after(response.headers)
                response.close()
            except library.TransportError as error:
                problem, unreachable = type(error).__name__, isinstance(error, library.ConnectError)
            tries += 1
            if pause is None:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1)) * (0.5 + random.random())
            spent = time.monotonic() - started
            if spent + pause > GIVE_UP_SECONDS or (unreachable and tries == CONNECT_TRIES):
                asks = f", and asks for {pause:.0f} s more" if spent + pause > GIVE_UP_SECONDS else ""
                raise TransientError(
                    f"{request.url.host}{request.url.path}: {problem} at try {tries}, after {spent:.0f} s{asks}"
                )
            if unreachable:  # nobody is there to be spared: the pauses of requests side by side must not add up
                time.sleep(pause)
            else:
                SHARED_PAUSE.extend(pause)

    return sending


@functools.cache
def install() -> None:
    """Make huggingface_hub use a client with retries in this process, from now on."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def factory() -> Any:
        client = default_client_factory()
        client.send = with_retries(client.send, sys.modules[type(client).__module__.partition(".")[0]])  # type: ignore[method-assign]
        return client

    set_client_factory(factory)
