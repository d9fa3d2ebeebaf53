"""A hub on the loopback: the endpoints that huggingface_hub calls, with its redirects and its headers, and its faults.

Datasets are folders of bytes under `owner/name`. Large files are redirected to a second server, as the hub does to its
CDN, which must never see the token. Every n-th request can fail, in each of the ways in which requests fail.

    python tests/harness/loopback_hub.py SHARED_DATA [EVERY]

serves the shared test data under the real names of the datasets and prints what HF_ENDPOINT must be.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

FAULTS = ("429", "503", "reset", "cut", "500")
INLINE = 200  # bytes of a file that git holds itself
PAGE = 3  # entries of a listing, so that there are pages


@dataclass
class Asked:
    """One request, as it came."""

    method: str
    path: str
    range: str
    token: bool
    cdn: bool
    fault: str = ""
    sent: int = 0
    when: float = field(default_factory=time.monotonic)


@dataclass
class Dataset:
    """Files of one commit. `served` holds what differs from what is listed, as after a change."""

    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    served: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = hashlib.sha1("".join(f"{n} {sha256(b)}" for n, b in sorted(self.files.items())).encode())
        self.revisions.setdefault("main", total.hexdigest())


@functools.lru_cache(256)
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """Both servers, and what they were asked."""

    def __init__(
        self, datasets: Mapping[str, Dataset], every: int = 0, faults: tuple[str, ...] = FAULTS, token: str = ""
    ):
        self.datasets, self.every, self.faults, self.token = dict(datasets), every, faults, token
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.hub, self.cdn = (ThreadingHTTPServer(("127.0.0.1", 0), self.handler(cdn)) for cdn in (False, True))
        for server in (self.hub, self.cdn):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.endpoint, self.cdn_endpoint = (f"http://127.0.0.1:{s.server_address[1]}" for s in (self.hub, self.cdn))

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.hub, self.cdn):
            server.shutdown()  # may be called again
            server.server_close()

    def handler(self, cdn: bool) -> type[Handler]:
        return type("Bound", (Handler,), {"state": self, "cdn": cdn})

    def note(self, asked: Asked) -> str:
        """Count a request; the fault that it must meet, or nothing."""
        with self.lock:
            self.asked.append(asked)
            if self.every and len(self.asked) % self.every == 0:
                asked.fault = self.faults[len(self.asked) // self.every % len(self.faults)]
            return asked.fault

    def moved(self, name: str = "") -> int:
        """Bytes of bodies sent from the CDN, of all files or of those whose contents are `name`'s."""
        return sum(a.sent for a in self.asked if a.cdn and name in a.path)


class Handler(BaseHTTPRequestHandler):
    state: Hub
    cdn: bool
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "")
        self.request_noted = Asked(self.command, self.path, self.headers.get("Range", ""), bool(token), self.cdn)
        fault = self.state.note(self.request_noted)
        if fault.isdigit():
            return self.answer(int(fault), b"busy", {"Retry-After": "0"} if fault == "429" else {})
        if fault == "later":
            return self.answer(429, b"busy", {"Retry-After": "1"})
        if fault == "slow":
            time.sleep(3)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        split = urlsplit(self.path)
        parts = [unquote(part) for part in split.path.strip("/").split("/")]
        try:
            if self.cdn:
                self.send_range(self.blob(parts[1]))
            elif parts[:2] == ["api", "datasets"]:
                self.api(parts[2:], parse_qs(split.query), parse_qs(body.decode()))
            elif parts[:1] == ["datasets"] and parts[3] == "resolve":
                self.resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
            else:
                self.missing("EntryNotFound")
        except LookupError as error:
            self.missing(str(error.args[0]))

    do_HEAD = do_POST = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a whole answer, or half of its body where the fault is a cut."""
        cut = self.request_noted.fault == "cut" and len(body) > 1 and self.command != "HEAD"
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.request_noted.sent = len(body) // 2 if cut else len(body)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def missing(self, code: str, status: int = 404) -> None:
        self.answer(
            status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"token was {self.headers.get('Authorization')}"}
        )

    def dataset(self, name: str, revision: str) -> tuple[Dataset, str]:
        if name not in self.state.datasets:
            raise LookupError("RepoNotFound")
        found = self.state.datasets[name]
        commit = found.revisions.get(revision, revision)
        if commit not in found.revisions.values():
            raise LookupError("RevisionNotFound")
        return found, commit

    def api(self, parts: list[str], query: dict[str, list[str]], form: dict[str, list[str]]) -> None:
        name, what, revision = "/".join(parts[:2]), *(parts[2:4] or ["revision", "main"])
        found, commit = self.dataset(name, revision)
        inside = "/".join(parts[4:])
        if what == "revision":
            siblings = [{"rfilename": path} for path in sorted(found.files)]
            value = {"_id": "1", "id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
            return self.answer(200, json.dumps(value).encode(), {})
        if what == "paths-info":
            value = [entry(path, found.files[path]) for path in form.get("paths", []) if path in found.files]
            return self.answer(200, json.dumps(value).encode(), {})
        if what != "tree":
            raise LookupError("EntryNotFound")
        entries = list(tree(found.files, inside, query.get("recursive", [""])[0].lower() == "true"))
        if not entries and inside:
            raise LookupError("EntryNotFound")
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            flag = query.get("recursive", ["False"])[0]
            address = f"{self.state.endpoint}{urlsplit(self.path).path}?recursive={flag}&cursor={start + PAGE}"
            headers["Link"] = f'<{address}>; rel="next"'
        self.answer(200, json.dumps(entries[start : start + PAGE]).encode(), headers)

    def resolve(self, name: str, revision: str, path: str) -> None:
        found, commit = self.dataset(name, revision)
        if found.gated and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            return self.missing("GatedRepo", 403 if self.headers.get("Authorization") else 401)
        if path not in found.files:
            raise LookupError("EntryNotFound")
        data = found.served.get(path, found.files[path])
        said = {"X-Repo-Commit": commit}
        if len(data) <= INLINE:
            return self.send_range(data, {**said, "ETag": f'"{blob_id(data)}"'})
        said |= {"X-Linked-ETag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        place = f"{self.state.cdn_endpoint}/cdn/{sha256(data)}/{quote(path)}?Signature=secret-signature"
        self.answer(302, b"", {**said, "Location": place})

    def blob(self, digest: str) -> bytes:
        for found in self.state.datasets.values():
            for data in (*found.files.values(), *found.served.values()):
                if sha256(data) == digest:
                    return data
        raise LookupError("EntryNotFound")

    def send_range(self, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        wanted = self.headers.get("Range", "")
        said = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **(headers or {})}
        if not wanted:
            return self.answer(200, data, said)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(len(data), int(last) + 1 if last else len(data))
        if start >= len(data):
            return self.answer(416, b"", said)
        self.answer(206, data[start:stop], {**said, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


def entry(path: str, data: bytes) -> dict[str, object]:
    """A file of a listing, as the hub has it: a large one's id is that of its pointer."""
    small = len(data) <= INLINE
    found: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data[:INLINE])}
    return found if small else {**found, "lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 134}}


def tree(files: Mapping[str, bytes], inside: str, recursive: bool) -> Iterator[dict[str, object]]:
    """Entries below a folder, folders first."""
    root = f"{inside}/" if inside else ""
    below = sorted(path for path in files if path.startswith(root))
    folders = {
        root + "/".join(p[len(root) :].split("/")[: n + 1]) for p in below for n in range(p[len(root) :].count("/"))
    }
    for folder in sorted(folders):
        if recursive or "/" not in folder[len(root) :]:
            yield {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
    for path in below:
        if recursive or "/" not in path[len(root) :]:
            yield entry(path, files[path])


def shared_datasets(data: Path) -> dict[str, Dataset]:
    """The shared test data under the real names of the datasets whose schemas they have."""

    def named(pattern: str, name: str) -> dict[str, bytes]:
        return {name.format(i): file.read_bytes() for i, file in enumerate(sorted(data.glob(pattern)))}

    # Test splits are not in the shared data. Stand-ins have their names: the rows of ARC's validation splits, and of
    # GSM8K's train split those from 6,000 on, which the rows here that are made from it hold too.
    arc = {str(f.relative_to(data / "qa/ai2_arc")): f.read_bytes() for f in sorted(data.glob("qa/ai2_arc/*/*.parquet"))}
    arc |= {name.replace("/validation-", "/test-"): found for name, found in arc.items() if "/validation-" in name}
    files = {
        "HuggingFaceFW/fineweb-edu": named("web/*.parquet", "sample/10BT/{:03d}_00000.parquet"),
        "open-web-math/open-web-math": named("math/openweb*.parquet", "data/train-{:05d}-of-00114-abcdef.parquet"),
        "AI-MO/NuminaMath-CoT": named("qa/numina*/*.parquet", "data/train-{:05d}-of-00005.parquet"),
        "meta-math/MetaMathQA": named("qa/metamath*/*.json", "MetaMathQA-395K.json"),
        "EleutherAI/proof-pile-2": named("math/arxiv*.jsonl.zst", "arxiv/train/arXiv_{:03d}.jsonl.zst"),
        "HuggingFaceTB/cosmopedia": named("qa/cosmopedia*/*.parquet", "data/stanford/train-{:05d}-of-00013.parquet"),
        "allenai/ai2_arc": arc,
        "openai/gsm8k": {"main/test-00000-of-00001.parquet": gsm8k_test(data)},
    }
    return {name: Dataset(found) for name, found in files.items()}


def gsm8k_test(data: Path) -> bytes:
    """The stand-in for GSM8K's test split, in its schema."""
    rows = zstandard.ZstdDecompressor().decompressobj().decompress((data / "qa/gsm8k/train.jsonl.zst").read_bytes())
    table = pa.Table.from_pylist([json.loads(line) for line in rows.splitlines()[6000:]])
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


if __name__ == "__main__":
    with Hub(shared_datasets(Path(sys.argv[1])), every=int(sys.argv[2]) if len(sys.argv) > 2 else 0) as hub:
        print(f"export HF_ENDPOINT={hub.endpoint}", flush=True)
        threading.Event().wait()
