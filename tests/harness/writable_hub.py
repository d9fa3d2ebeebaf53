"""A loopback hub that is written to, by git's large files and commits, as huggingface_hub does without xet.

A model's repository lies beside those of data sets, as `owner/name.model`. What was uploaded is checked as the hub
does: a blob against its sha256 and size, the metadata of a card against what YAML it may be.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from loopback_hub import INLINE, Asked, Dataset, Handler, Hub

SUFFIX = {"datasets": "", "models": ".model"}


class WritableHandler(Handler):
    state: WritableHub

    def do_GET(self) -> None:  # noqa: N802
        if not self.cdn and self.command == "POST" and self.writes():
            return
        parts = self.path.strip("/").split("/")  # what reads a model reads a data set of that name
        if parts[:2] == ["api", "models"]:
            self.path = "/" + "/".join(["api", "datasets", parts[2], parts[3] + SUFFIX["models"], *parts[4:]])
        elif parts[2:3] == ["resolve"]:
            self.path = "/" + "/".join(["datasets", parts[0], parts[1] + SUFFIX["models"], *parts[2:]])
        super().do_GET()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def do_PUT(self) -> None:  # noqa: N802
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        digest = urlsplit(self.path).path.rsplit("/", 1)[1]
        if self.fails():
            return
        if hashlib.sha256(data).hexdigest() != digest:
            return self.answer(400, b"another sha256", {})
        if 0 < self.state.refuse_after <= len(self.state.put):
            return self.answer(507, b"", {})  # which the client does not ask again
        self.state.blobs[digest] = data
        self.state.put.append(digest)
        self.answer(200, b"", {})

    def fails(self) -> bool:
        """Meet the fault of this request, if it must meet one; only those that a client may see before it writes."""
        self.request_noted = Asked(self.command, self.path, "", "Authorization" in self.headers, self.cdn)
        fault = self.state.note(self.request_noted)
        if fault:
            self.answer(int(fault) if fault.isdigit() else 503, b"busy", {"Retry-After": "0"})
        return bool(fault)

    def writes(self) -> bool:
        """Answer a request that writes; False where this is none."""
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        is_api, is_large = parts[0] == "api" and parts[-1] != "paths-info", parts[-1] == "batch"
        if not (is_api or is_large):
            return False
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.fails():
            return True
        if self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self.missing("GatedRepo", 403 if "Authorization" in self.headers else 401)
        elif parts[1:] == ["repos", "create"]:
            self.create(json.loads(body))
        elif parts[1:] == ["validate-yaml"]:
            text = json.loads(body)["content"]
            yaml.safe_load(text.split("---")[1])
            self.say({"errors": [], "warnings": []})
        elif is_large:
            self.large(json.loads(body))
        elif parts[-2] == "preupload":
            files = json.loads(body)["files"]
            modes = [("lfs" if file["size"] > INLINE else "regular", file["path"]) for file in files]
            self.say({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for mode, path in modes]})
        elif parts[-2] == "commit":
            self.commit("/".join(parts[2:4]) + SUFFIX[parts[1]], body)
        else:
            self.missing("EntryNotFound")
        return True

    def say(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {})

    def create(self, asked: dict[str, Any]) -> None:
        kind = "datasets" if asked.get("type") == "dataset" else "models"
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        there = name + SUFFIX[kind] in self.state.datasets
        if not there:
            self.state.datasets[name + SUFFIX[kind]] = Dataset({})
            self.state.created[name + SUFFIX[kind]] = asked
        page = f"{self.state.endpoint}/{'datasets/' if kind == 'datasets' else ''}{name}"
        self.answer(409 if there else 200, json.dumps({"url": page, "name": name}).encode(), {})

    def large(self, asked: dict[str, Any]) -> None:
        objects = []
        for wanted in asked["objects"]:
            there = wanted["oid"] in self.state.blobs
            upload = {"upload": {"href": f"{self.state.cdn_endpoint}/put/{wanted['oid']}", "header": {}}}
            objects.append({**wanted, **({} if there else {"actions": upload})})
        self.say({"transfer": "basic", "objects": objects})

    def commit(self, name: str, body: bytes) -> None:
        files = dict(self.state.datasets[name].files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                assert len(self.state.blobs[value["oid"]]) == value["size"]
                files[value["path"]] = self.state.blobs[value["oid"]]
        self.state.datasets[name] = made = Dataset(files)
        self.say({"success": True, "commitOid": made.revisions["main"], "commitUrl": f"{self.state.endpoint}/{name}"})


class WritableHub(Hub):
    """`created`: what was asked of each new repository. `put`: the digests of blobs that came, as often as they did."""

    def __init__(self, every: int = 0, faults: tuple[str, ...] = ("503", "429"), token: str = "token"):
        self.blobs: dict[str, bytes] = {}
        self.put: list[str] = []
        self.refuse_after = 0  # blobs, where it is not 0
        self.created: dict[str, dict[str, object]] = {}
        super().__init__({}, every, faults, token)

    def handler(self, cdn: bool) -> type[WritableHandler]:
        return type("Bound", (WritableHandler,), {"state": self, "cdn": cdn})
