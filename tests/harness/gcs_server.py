"""A server that speaks the XML API of Google's store: moto's, which has the same calls, with Google's own words.

The free emulators of that store speak its JSON API, which obstore does not use. What differs from S3 is from Google's
reference of the XML API: a write is conditional on an object's generation, which a store of S3's kind does not have.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

from s3_server import S3Server

SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
REFUSED = b"<?xml version='1.0'?><Error><Code>PreconditionFailed</Code><Message>told to</Message></Error>"


class GcsServer(S3Server):
    """Buckets of gs://, their requests counted, and failed when told to, as those of S3Server."""

    scheme = "gs"

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.moto = self.moto, self.translated
        self.generations: dict[str, int] = {}  # of each object that is there, by its path
        self.newest = 1_700_000_000_000_000  # generations are times in microseconds
        self.writing = threading.Lock()

    def environment(self) -> dict[str, str]:
        """What a client reads: a service account whose tokens nobody asks for."""
        account = {"gcs_base_url": self.address, "disable_oauth": True}
        key = {"client_email": "", "private_key": "", "private_key_id": ""}
        return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account | key)}

    def translated(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request: the words of Google's headers, and generations beside what moto keeps."""
        if source := environ.pop("HTTP_X_GOOG_COPY_SOURCE", None):
            environ["HTTP_X_AMZ_COPY_SOURCE"] = source
        environ["HTTP_AUTHORIZATION"] = SIGNED
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        in_parts = "uploadId" in environ["QUERY_STRING"]  # such an upload is an object once it is ended by a POST
        if method not in (("POST",) if in_parts else ("PUT", "DELETE")):
            return self.inner(environ, self.with_generation(path, start_response))
        with self.writing:
            wanted = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
            if wanted is not None and int(wanted) != self.generations.get(path, 0):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("412 Precondition Failed", [("Content-Length", str(len(REFUSED)))])
                return [REFUSED]
            said: list[Any] = []
            body = b"".join(self.inner(environ, lambda *answer: said.extend(answer)))
            if said[0].startswith("2"):
                self.newest += 1
                self.generations[path] = self.newest
                if method == "DELETE":
                    del self.generations[path]
            self.with_generation(path, start_response)(*said)
            return [body]

    def with_generation(self, path: str, start_response: Callable[..., Any]) -> Callable[..., Any]:
        """Answer with the generation of the object at `path`, if it is there."""

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            generation = self.generations.get(path)
            named = [("x-goog-generation", str(generation))] if generation else []
            return start_response(status, [*headers, *named], *rest)

        return start
