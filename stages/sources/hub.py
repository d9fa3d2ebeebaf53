"""Files of the hub's datasets, `hf://datasets/OWNER/NAME[@REVISION]/PATH`: pinned, identified, read by ranges.

A revision (branch, tag, or none, which is `main`) becomes a commit once in a process, and all listing and reading uses
that commit. A file is identified by what git has of it, the sha256 of a large file or the id of a small one's blob, and
its size: a new commit that leaves a file alone leaves everything built from it in place. Each answer must come from the
commit, with that identity, or the read is refused. Nothing is kept on disk: what units make of the bytes is.

HF_ENDPOINT and HF_TOKEN are huggingface_hub's; the token goes into a header and nowhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from stages.errors import DataError, TransientError
from stages.sources import retries

PROTOCOL = "hf://"
ADDRESS = re.compile(
    r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
COMMIT = re.compile("[0-9a-f]{40}")
SHORT_ANSWERS = 3  # answers shorter than asked for, though complete by their own account, until that is an error

_commits: dict[tuple[str, str], str] = {}
_lock = threading.Lock()


def parse_address(path: str) -> tuple[str, str, str]:
    """Return (owner/name, revision or "", path inside) of an address. Raises DataError for another kind of one."""
    found = ADDRESS.fullmatch(path)
    if found is None:
        raise DataError(f"{path}: write hf://datasets/OWNER/NAME[@REVISION]/PATH")
    return found["repository"], unquote(found["revision"] or ""), found["path"] or ""


def pin_address(path: str, revision: str = "") -> str:
    """Return `path` at the commit that its revision, else `revision`, else `main` now is. Raises DataError."""
    repository, written, inside = parse_address(path)
    return f"hf://datasets/{repository}@{commit_of(repository, written or revision or 'main')}/{inside}"


def commit_of(repository: str, revision: str) -> str:
    """Return the commit of a revision, asked for once. Raises DataError when there is none, TransientError."""
    with _lock:
        known = _commits.get((repository, revision))
    if known is not None:
        return known
    commit = revision
    if not COMMIT.fullmatch(revision):
        from huggingface_hub import HfApi

        retries.install()
        with explain_errors(f"hf://datasets/{repository}@{revision}"):
            commit = str(HfApi().dataset_info(repository, revision=revision, expand=["sha"]).sha)
    with _lock:
        return _commits.setdefault((repository, revision), commit)


def datasets_of(addresses: list[str], revision: str) -> list[tuple[str, str]]:
    """Return (owner/name, revision) of each of `addresses` that lies on the hub; `revision` where it names none."""
    parts = [parse_address(address) for address in addresses if address.startswith(PROTOCOL)]
    return [(repository, written or revision or "main") for repository, written, _ in parts]


def commits(addresses: list[str], revision: str = "") -> str:
    """Return the commits that `addresses` are read at: one, or `owner/name@commit, ...` of several datasets.

    It is "" where none of them lies on the hub. Raises DataError, TransientError.
    """
    pinned = [(repository, commit_of(repository, asked)) for repository, asked in datasets_of(addresses, revision)]
    pinned = list(dict.fromkeys(pinned))
    if len(pinned) == 1:
        return pinned[0][1]
    return ", ".join(f"{repository}@{commit}" for repository, commit in pinned)


def pin_commits(addresses: list[str], revision: str, recorded: str) -> None:
    """Read `addresses` at the commits that `commits` once gave, in this process, whatever their revision is by now."""
    by_dataset = dict(entry.split("@") for entry in recorded.split(", ") if "@" in entry)
    for repository, asked in datasets_of(addresses, revision):
        commit = by_dataset.get(repository, recorded)
        if COMMIT.fullmatch(commit):
            with _lock:
                _commits[repository, asked] = commit


def digest_of(etag: str, size: int) -> str:
    """Return what stands for a file's contents."""
    return hashlib.sha256(json.dumps(["hub", etag, size]).encode()).hexdigest()


def identify(fs: Any, path: str) -> tuple[str, int]:
    """Return (digest of the contents, bytes) of a pinned file, from its listing. Raises DataError."""
    with explain_errors(path):
        info = fs.info(path)
    etag = info["lfs"]["sha256"] if info.get("lfs") else info["blob_id"]
    return digest_of(etag, info["size"]), info["size"]


@contextlib.contextmanager
def explain_errors(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line about `what`: DataError, but for TransientError.

    Its own messages are not repeated: they hold signed addresses.
    """
    try:
        yield
    except (DataError, TransientError):
        raise
    except Exception as error:
        cause: BaseException = error  # the first of the chain that has an answer of the hub, else the last
        while getattr(cause, "response", None) is None and cause.__cause__ is not None:
            cause = cause.__cause__
        raise DataError(f"{what}: {explanation(cause)}") from None


def explanation(error: BaseException) -> str:
    """Return what is wrong and how to mend it."""
    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    token = "put a token that may read it into HF_TOKEN"
    if kind == "GatedRepoError":
        return f"the dataset is gated (status {status}); accept its terms on its page, then {token}"
    if kind == "RevisionNotFoundError":
        return "no such revision; check its name"
    if kind == "RepositoryNotFoundError" or status == 401:
        return f"no such dataset, or one that is not public (status {status}); check the name, or {token}"
    if status == 403:
        return f"access is refused (status 403); {token}"
    if status in (404, 416) or isinstance(error, FileNotFoundError):
        return "no such file at this commit; check the path"
    if kind == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE forbids to ask the hub; unset it"
    return f"the hub answers with status {status}" if status else f"{kind}: {str(error).splitlines()[0][:200]}"


class HubFile(io.RawIOBase):
    """A pinned file, read by ranges: `read(n)` is one request for n bytes, so a reader decides what moves."""

    def __init__(self, path: str, digest: str, size: int):
        """Open nothing yet; `digest` and `size` are as `identify` gave them."""
        from huggingface_hub import hf_hub_url

        retries.install()
        self.path, self.digest, self.size, self.at = path, digest, size, 0
        self.repository, self.commit, self.inside = parse_address(path)
        self.address = hf_hub_url(self.repository, self.inside, repo_type="dataset", revision=self.commit)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; asks for nothing."""
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def read(self, size: int | None = -1) -> bytes:
        """Return the next `size` bytes, fewer only at the end. Raises DataError, TransientError."""
        stop = self.size if size is None or size < 0 else min(self.size, self.at + size)
        data = self.fetch(self.at, stop) if stop > self.at else b""
        self.at += len(data)
        return data

    def readall(self) -> bytes:
        """Return all from here on."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Read as `read` does, into a buffer, and return how many bytes that were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def fetch(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop). Raises DataError when the file is not what it was, TransientError."""
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        for _ in range(SHORT_ANSWERS):
            with explain_errors(self.path):
                response = get_session().get(
                    self.address, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
                )
                hf_raise_for_status(response)
            self.check([*response.history, response])
            body: bytes = response.content
            body = body[start:stop] if response.status_code == 200 else body
            if len(body) == stop - start:
                return body
        raise TransientError(f"{self.path}: {stop - start:,} bytes at {start:,} were asked for, {len(body):,} came")

    def check(self, answers: list[Any]) -> None:
        """Refuse answers that are not from this file at its commit; what a mirror does not say is not held against it.

        The hub names commit, etag and size of a large file on its redirect to where the bytes are.
        """
        etag = size = None
        for answer in answers:
            headers = answer.headers
            if "x-repo-commit" in headers:
                if headers["x-repo-commit"] != self.commit:
                    self.refuse(f"the answer is from commit {headers['x-repo-commit'][:12]}")
                etag = headers.get("x-linked-etag") or (None if answer.is_redirect else headers.get("etag"))
                size = headers.get("x-linked-size")
        total = answers[-1].headers.get("content-range", "").rpartition("/")[2]
        for said in (size, total):
            if said and said.isdigit() and int(said) != self.size:
                self.refuse(f"{int(said):,} bytes, not {self.size:,}")
        if etag and digest_of(etag.removeprefix("W/").strip('"'), self.size) != self.digest:
            self.refuse(f"etag {etag[:16]}")

    def refuse(self, how: str) -> None:
        """Raise DataError."""
        raise DataError(f"{self.path} has changed since it was listed ({how}); run the same command again")
