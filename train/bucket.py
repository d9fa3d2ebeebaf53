"""A bucket of an object store, by obstore's own client: its few calls, with errors that people understand.

A request that fails in passing (503, 429, a reset, no answer, a body that ends early) is sent again by the client, for
PATIENCE at most; then it is an UnavailableError. The client has threads of its own, so a process that was forked from
one that used it would wait for ever: that is refused. The trainer and the pipeline both use it, where an address says
so: obstore is imported then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from train.redact import without_secrets

SCHEMES = ("s3", "gs", "az")
GOOGLE = "gs://"  # a conditional write names an object's generation there, not its etag
NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound")  # in an answer of S3's and Google's store, and of Azure's
PATIENCE = timedelta(seconds=120)  # for one request, all its attempts together
BACKOFF = (timedelta(seconds=0.2), timedelta(seconds=10))  # the first pause, and the longest
ATTEMPTS = 20
SILENCE = timedelta(seconds=30)  # without a byte, after which an attempt has failed
LONGEST = timedelta(minutes=30)  # of one attempt, its body included
AGAIN = 3  # times that we do again what the client does not: lists and bodies that end early
PART = 8 << 20  # bytes of one part of an upload; at most 10,000 parts make an object
Result = TypeVar("Result")
_user = 0  # pid of the process that used a client first


class BucketError(OSError):
    """A bucket that cannot be used as it is: its scheme, its client, its name or our credentials. For people."""


class UnavailableError(ConnectionError):
    """The store does not answer as it should, and was asked often enough. It may, later."""


def is_in_use() -> bool:
    """Whether this process has used a client, and must not be forked into one that will."""
    return _user == os.getpid()


class StoredObject(NamedTuple):
    """An object as a list shows it."""

    path: str  # with scheme and bucket
    size: int
    stamp: str  # its etag
    modified: datetime  # by the store's clock


class Bucket:
    """The objects of one bucket. Paths are whole addresses: `s3://bucket/a/b`."""

    def __init__(self, address: str):
        """address: of anything in the bucket. Raises BucketError where its scheme or the client is not known here."""
        scheme, _, rest = address.partition("://")
        if scheme not in SCHEMES:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            raise BucketError(f"{scheme}://: results are kept in a folder or in a bucket ({known})")
        try:
            import obstore
            from obstore.store import from_url
        except ImportError:
            raise BucketError(f"{scheme}:// needs the package obstore: pip install obstore") from None
        self.base = f"{scheme}://{rest.split('/')[0]}"
        options: Any = {"timeout": LONGEST, "read_timeout": SILENCE, "allow_http": True}
        backoff = {"init_backoff": BACKOFF[0], "max_backoff": BACKOFF[1], "base": 2}
        retries: Any = {"max_retries": ATTEMPTS, "retry_timeout": PATIENCE, "backoff": backoff}
        self._obstore, self._errors = obstore, obstore.exceptions
        try:
            self._client = from_url(self.base, client_options=options, retry_config=retries)
        except (ValueError, obstore.exceptions.BaseError) as error:
            raise BucketError(f"{self.base}: {first_line(error)}") from None

    def key(self, path: str) -> str:
        """Return the name of an object within the bucket."""
        return "/".join(part for part in path.removeprefix(self.base).split("/") if part)

    @contextlib.contextmanager
    def _request(self, path: str) -> Iterator[Any]:
        """Give the client, and turn what it raises into errors of ours."""
        global _user
        if _user not in (0, os.getpid()):
            raise RuntimeError(f"{path}: this process was forked from one that used the bucket, whose threads it lacks")
        _user = os.getpid()
        errors = self._errors
        try:
            yield self._obstore
        except FileNotFoundError as error:
            if NO_BUCKET.search(str(error)):
                raise BucketError(f"{self.base}: there is no such bucket; make it first") from None
            raise FileNotFoundError(errno.ENOENT, "no such object", path) from None
        except (errors.AlreadyExistsError, errors.PreconditionError):
            raise FileExistsError(errno.EEXIST, "the object exists", path) from None
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise BucketError(
                f"{path}: the store refuses us ({first_line(error)}); give credentials in the environment "
                "(docs/scaling-out.md has their names)"
            ) from None
        except errors.GenericError as error:
            if NO_BUCKET.search(str(error)):
                raise BucketError(f"{self.base}: there is no such bucket; make it first") from None
            raise UnavailableError(f"{path}: the store does not answer as it should ({first_line(error)})") from None

    def get(self, path: str) -> bytes:
        """Return an object. Raises FileNotFoundError."""

        def got() -> bytes:
            with self._request(path) as client:
                return bytes(client.get(self._client, self.key(path)).bytes())

        return again(got)

    def get_range(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of an object. Raises FileNotFoundError."""

        def got() -> bytes:
            with self._request(path) as client:
                return bytes(client.get_range(self._client, self.key(path), start=start, end=stop))

        return again(got) if stop > start else b""

    def download(self, path: str, target: Path, stops: Callable[[], bool] = lambda: False) -> None:
        """Write an object to a file of this machine. Raises FileNotFoundError; an object cut short is asked for again.

        stops: is asked at each PART; once it says yes, InterruptedError is raised.
        """

        def downloaded() -> None:
            with self._request(path) as client, target.open("wb") as file:
                reply = client.get(self._client, self.key(path))
                for chunk in reply.stream(min_chunk_size=PART):
                    file.write(chunk)
                    if stops():
                        raise InterruptedError(f"{path}: its download was stopped")
            if (size := target.stat().st_size) != reply.meta["size"]:
                raise UnavailableError(f"{path}: {size:,} of its {reply.meta['size']:,} bytes came")

        again(downloaded)

    def put(self, path: str, contents: bytes | Path, *, create: bool = False, replaces: str = "") -> str:
        """Write an object, at once and whole. Returns its etag.

        create: only if there is none. replaces: only in the place of the one with this etag. Raises FileExistsError if
        there is another one, which may be our own, where the store's answer to an earlier attempt was lost; and
        NotImplementedError where the store cannot tell.
        """
        if isinstance(contents, Path):
            part = max(PART, contents.stat().st_size // 9000)
        else:
            part = max(PART, len(contents) + 1)
        mode: Any = "create" if create else {"e_tag": replaces} if replaces else "overwrite"

        def put() -> str:
            nonlocal mode
            if replaces and self.base.startswith(GOOGLE):
                mode = self._unchanged(path, replaces)
            with self._request(path) as client:
                try:
                    reply = client.put(self._client, self.key(path), contents, mode=mode, chunk_size=part)
                except self._errors.NotSupportedError:
                    raise NotImplementedError(f"{self.base} has no conditional writes") from None
                except FileNotFoundError:
                    raise BucketError(f"{self.base}: there is no such bucket; make it first") from None
                return quoted(reply["e_tag"])

        return again(put) if create or replaces else put()  # where there was no answer, the client leaves it to us

    def _unchanged(self, path: str, stamp: str) -> dict[str, str]:
        """Return the generation of the object with etag `stamp`, which is what this store compares before it writes.

        Raises FileExistsError if there is another object.
        """
        with self._request(path) as client:
            facts = client.head(self._client, self.key(path))
        if self._object(facts).stamp != stamp:
            raise FileExistsError(errno.EEXIST, "the object is another one", path)
        return {"e_tag": stamp, "version": facts["version"]}

    def head(self, path: str) -> StoredObject:
        """Return the facts of an object. Raises FileNotFoundError."""
        with self._request(path) as client:
            return self._object(client.head(self._client, self.key(path)))

    def objects(self, folder: str) -> Iterator[StoredObject]:
        """Yield every object below `folder`, by name, a thousand a request."""
        last, broken = None, 0
        while True:
            try:
                with self._request(folder) as client:
                    stream = client.list(self._client, self.key(folder), offset=last, chunk_size=1000)
                    for page in stream:
                        for facts in page:
                            last = facts["path"]
                            yield self._object(facts)
                return
            except FileNotFoundError:
                return
            except UnavailableError:
                broken += 1
                if broken > AGAIN:
                    raise

    def names(self, folder: str) -> list[str]:
        """Return the names in `folder`, of objects and of folders."""

        def listed() -> Any:
            with self._request(folder) as client:
                return client.list_with_delimiter(self._client, self.key(folder))

        reply = again(listed)
        paths = [*reply["common_prefixes"], *(facts["path"] for facts in reply["objects"])]
        return [path.rpartition("/")[2] for path in paths]

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store. Raises FileNotFoundError."""
        with self._request(source) as client:
            client.copy(self._client, self.key(source), self.key(target))

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects in their order, a thousand a request where the store can; what is gone is passed over."""
        if paths:

            def deleted() -> None:
                with contextlib.suppress(FileNotFoundError), self._request(paths[0]) as client:
                    client.delete(self._client, [self.key(path) for path in paths])

            again(deleted)

    def _object(self, facts: Any) -> StoredObject:
        stamp = quoted(facts["e_tag"]) or str(facts["version"] or "")
        return StoredObject(f"{self.base}/{facts['path']}", facts["size"], stamp, facts["last_modified"])


def quoted(etag: str | None) -> str:
    """Return an etag in its quotes, which Azure's lists leave out, or an empty text where there is none."""
    return f'"{etag}"' if etag and not etag.endswith('"') else etag or ""


def again(call: Callable[[], Result]) -> Result:
    """Return what `call` does, made again where it failed in passing in a way that the client leaves to us.

    These are a body that ends early, and a delete or a conditional write without an answer.
    """
    began = time.monotonic()
    for number in range(AGAIN):
        try:
            return call()
        except UnavailableError:
            if time.monotonic() - began > PATIENCE.total_seconds() / 2:  # the client has tried for long
                raise
        time.sleep(BACKOFF[0].total_seconds() * 2**number)
    return call()


def first_line(error: Exception) -> str:
    """Return what an error of the client says, on one line, without its debugging notes."""
    return without_secrets(" ".join(str(error).partition("Debug source")[0].split())[:300])
