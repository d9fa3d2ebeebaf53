"""Azurite, Microsoft's own server of its blob API, on loopback: `npm install azurite` puts it on the PATH."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from email.utils import formatdate

import pytest
from ray_cluster import free_port

ACCOUNT = "devstoreaccount1"
# The key of every emulator, which Microsoft publishes.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-08-06"
TYPE = "application/octet-stream"
PATIENCE = 60  # seconds until it listens


class AzureServer:
    """Containers of az://, in the memory of a process. Skips where azurite is not installed."""

    def __init__(self) -> None:
        program = shutil.which("azurite-blob")
        if program is None:
            pytest.skip("azurite-blob is not on the PATH")
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck"]
        self.process = subprocess.Popen([program, *options, "--silent"], stdout=subprocess.DEVNULL)
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                assert time.monotonic() < ends and self.process.poll() is None, "azurite does not listen"
                time.sleep(0.2)

    def environment(self) -> dict[str, str]:
        """What a client reads."""
        return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": self.address}

    def new_bucket(self) -> str:
        """Make a container, and return its address."""
        name = f"b{uuid.uuid4().hex[:12]}"
        date = formatdate(usegmt=True)
        lines = ["PUT", "", "", "", "", TYPE, "", "", "", "", "", "", f"x-ms-date:{date}", f"x-ms-version:{VERSION}"]
        signed = "\n".join([*lines, f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"])
        signature = base64.b64encode(hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()).decode()
        headers = {
            "Content-Type": TYPE,
            "x-ms-date": date,
            "x-ms-version": VERSION,
            "Authorization": f"SharedKey {ACCOUNT}:{signature}",
        }
        address = f"{self.address}/{ACCOUNT}/{name}?restype=container"
        urllib.request.urlopen(urllib.request.Request(address, b"", headers, method="PUT")).close()
        return f"az://{name}"

    def close(self) -> None:
        """Stop; asked to, it takes a minute."""
        self.process.kill()
        self.process.wait()
