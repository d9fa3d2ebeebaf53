"""A real S3 server on loopback (moto) that counts requests and, when told to, fails as stores do."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from typing import Any

# What goes wrong -> how. `lost` does what is asked and says that it failed; `short` ends in the middle of the body.
FAULTS = ("503", "500", "lost", "short", "reset")


class S3Server:
    """moto's server in a thread of this process, its requests counted by kind and, at `fault_rate`, failed."""

    scheme = "s3"

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        # Not moto's dispatcher of all services, which lists moto's folder for every request: half of the work of one.
        self.moto: Callable[..., Iterable[bytes]] = create_backend_app("s3")
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True)
        self.address = f"http://127.0.0.1:{self.server.port}"
        self.requests: Counter[str] = Counter()  # PUT, GET, LIST, HEAD, POST, DELETE
        self.paths: list[str] = []
        self.failed: Counter[str] = Counter()
        self.fault_rate = 0.0
        self.fault: Callable[[dict[str, Any]], str | None] | None = None  # environ -> a fault, or None
        self.ignores_conditions = False  # as some stores and gateways do
        self.ahead = 0.0  # seconds that its clock is ahead of ours
        self.random = random.Random(3)
        self.lock = threading.Lock()
        self.closed = threading.Event()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """What a client reads."""
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.address, **keys}

    def new_bucket(self) -> str:
        """Make a bucket, and return its address."""
        name = f"b{uuid.uuid4().hex[:12]}"
        request = urllib.request.Request(f"{self.address}/{name}", method="PUT")
        urllib.request.urlopen(request).close()
        self.reset()
        return f"{self.scheme}://{name}"

    def reset(self) -> None:
        """Forget what was counted, and fail no more."""
        self.requests.clear()
        self.failed.clear()
        self.paths.clear()
        self.fault_rate, self.fault, self.ignores_conditions, self.ahead = 0.0, None, False, 0.0

    def answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request, or fail it."""
        listed = environ["REQUEST_METHOD"] == "GET" and "list-type" in environ["QUERY_STRING"]
        with self.lock:
            self.requests["LIST" if listed else environ["REQUEST_METHOD"]] += 1
            self.paths.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            fault = self.fault(environ) if self.fault else None
            if fault is None and self.random.random() < self.fault_rate:
                fault = self.random.choice(FAULTS)
            self.failed.update([fault] if fault else [])
        if self.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if fault is None or (fault == "short" and environ["REQUEST_METHOD"] != "GET"):
            return self.moto(environ, self.by_its_clock(start_response) if self.ahead else start_response)
        return self.fail(fault, environ, start_response)

    def by_its_clock(self, start_response: Callable[..., Any]) -> Callable[..., Any]:
        """Answer with times that are `ahead` of ours."""

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            at = formatdate(time.time() + self.ahead, usegmt=True)
            shifted = [(name, at if name.lower() == "last-modified" else value) for name, value in headers]
            return start_response(status, shifted, *rest)

        return start

    def fail(self, fault: str, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        """Answer as a store in trouble does, and close the connection."""
        said: list[Any] = []
        if fault in ("lost", "short"):
            body = b"".join(self.moto(environ, lambda *arguments: said.extend(arguments)))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault == "silence":
            self.closed.wait(60)
        if fault in ("503", "500", "403"):
            code = {"503": "SlowDown", "500": "InternalError", "403": "AccessDenied"}[fault]
            body = f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode()
            start_response(f"{fault} Failed", [("Content-Length", str(len(body))), ("Connection", "close")])
            yield body
            return
        if fault == "short":
            headers = [(name, value) for name, value in said[1] if name.lower() not in ("content-length", "connection")]
            start_response(said[0], [*headers, ("Content-Length", str(len(body))), ("Connection", "close")])
            yield body[: len(body) // 2]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError("told to")

    def close(self) -> None:
        """Stop."""
        self.closed.set()
        self.server.shutdown()
