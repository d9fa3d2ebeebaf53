"""Which Ray an address leads to, asked before Ray is: of a wrong one Ray itself says so after minutes, or never.

Who listens is told by what it answers: a dashboard speaks HTTP/1, the head (GCS) and Ray Client each know a call that
the other does not. Both answer within milliseconds, and say whether they want a token.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path
from typing import Literal

from pipeline.errors import UsageError, UserError

Listener = Literal["head", "client", "dashboard", "token", "other"]
CLIENT = "ray://"
CLIENT_PORT = 10001  # of Ray Client, where none is given
PATIENCE = 3.0  # seconds for each question
HEAD_CALL, CLIENT_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId", "/ray.rpc.RayletDriver/ClusterInfo"
FORMS = "forms are ray://host:10001, and on a node of the cluster host:6379 or auto"
START = "`ray start --head`"


def resolve(address: str) -> str:
    """Return the address for `ray.init` of a cluster that answers: host:port or ray://host:port.

    `auto` is RAY_ADDRESS, or the cluster of this machine. Raises UsageError at what is no address, and UserError where
    no cluster answers, or one that this machine cannot join.
    """
    given, where = address, f"--address {address}"
    if address == "auto":
        given = os.environ.get("RAY_ADDRESS", "auto")
        if given == "auto":
            return _cluster_of_this_machine()
        where = f"RAY_ADDRESS={given}"
    if given.startswith(("http://", "https://")):
        raise UsageError(f"{where}: that is a dashboard, which starts drivers: {_job(given)}; {FORMS}")
    scheme, host, port = _split(given, where)
    listener = _listener(host, port, where)
    if listener == "token":
        raise UserError(
            f"{where}: the cluster asks for a token, and {'ours is not its' if _token() else 'there is none'}; set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to those it was started with"
        )
    if listener == "dashboard":
        raise UserError(
            f"{where}: port {port} is the dashboard's, which starts drivers: {_job(f'http://{host}:{port}')}"
        )
    if listener == "other":
        raise UserError(f"{where}: what listens there is no Ray; {FORMS}")
    if listener == "head" and scheme:
        raise UserError(f"{where}: port {port} is the head's own; that of Ray Client is {CLIENT_PORT} by default")
    if listener == "client" and not scheme:
        raise UserError(f"{where}: port {port} is that of Ray Client; write --address {CLIENT}{host}:{port}")
    if listener == "head" and not _is_node(port):
        raise UserError(
            f"{where}: this machine is no node of that cluster; from outside use "
            f"--address {CLIENT}{host}:{CLIENT_PORT}, or {_job(f'http://{host}:8265')}"
        )
    return f"{scheme}{host}:{port}"


def _split(address: str, where: str) -> tuple[str, str, int]:
    """Return (`ray://` or nothing, host, port). Raises UsageError."""
    match = re.fullmatch(r"(ray://)?([\w.-]+|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?", address)
    if not match or not (match[3] or match[1]) or int(match[3] or 1) > 65535:
        raise UsageError(f"{where}: {'a port is missing' if match else 'not an address'}; {FORMS}")
    return match[1] or "", match[2], int(match[3] or CLIENT_PORT)


def _job(dashboard: str) -> str:
    """Return the command that runs a driver inside a cluster."""
    return f"`ray job submit --address {dashboard} -- python -m pipeline run ... --executor ray`"


def _cluster_of_this_machine() -> str:
    """Return the address of the Ray that runs here. Raises UserError where none does, or several do."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        found = canonicalize_bootstrap_address_or_die("auto")
    except ConnectionError as error:
        several = "several" in str(error).lower() or "multiple" in str(error).lower()
        what = "several clusters run" if several else "no Ray runs"
        raise UserError(f"--address auto: {what} on this machine; name one (host:6379), or {START}") from None
    try:
        return resolve(found)
    except UserError as error:
        raise UserError(
            f"--address auto: {error} (noted by the last `ray start`); start it again with {START}"
        ) from None


def _listener(host: str, port: int, where: str) -> Listener:
    """Return who listens at a port. Raises UserError where nobody does."""
    try:
        with socket.create_connection((host.strip("[]"), port), PATIENCE) as connection:
            connection.settimeout(1.0)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: ray\r\nConnection: close\r\n\r\n")
            answer = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                answer = connection.recv(16)
    except socket.gaierror:
        raise UserError(f"{where}: no such host is known here; check the name") from None
    except OSError as error:
        said = error.strerror or "no answer"
        raise UserError(f"{where}: nobody listens there ({said}); is the cluster up, and this its port?") from None
    if answer.startswith(b"HTTP/1."):
        return "dashboard"
    try:
        import grpc
    except ImportError:  # Ray says it then, later
        return "client" if port == CLIENT_PORT else "head"
    del grpc
    head, client = _call(host, port, HEAD_CALL), _call(host, port, CLIENT_CALL)
    if "UNAUTHENTICATED" in (head, client):
        return "token"
    return "head" if head == "OK" else "client" if client in ("OK", "NOT_FOUND") else "other"


def _call(host: str, port: int, method: str) -> str:
    """Return the name of the status with which a gRPC call without arguments ends."""
    import grpc

    token = _token()
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=PATIENCE, metadata=metadata)
            return "OK"
        except grpc.RpcError as error:
            return str(error.code().name)


def _token() -> str:
    """Return the token that Ray would send, or an empty text."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return ""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _is_node(port: int) -> bool:
    """Whether a raylet of the cluster whose head listens at `port` runs on this machine (True if that is unknown)."""
    if not Path("/proc/self/cmdline").exists():
        return True
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                command = (entry / "cmdline").read_bytes()
                if command.partition(b"\0")[0].endswith(b"/raylet") and re.search(rb":%d\b" % port, command):
                    return True
    return False
