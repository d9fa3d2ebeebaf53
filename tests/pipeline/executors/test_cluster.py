"""A build on a real Ray cluster of several nodes, its sources and its results in a bucket: the bytes of a local run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from engine_harness import REPO, Work, copy_project, edit, kill, new_work, wait_for
from ray_cluster import RayCluster, Wire, free_port
from s3_server import S3Server

from pipeline.commands.open_build import open_build
from pipeline.commands.stored_records import records_beside
from pipeline.engine.fingerprint import PROJECT, fingerprint, versions
from pipeline.executors.ray_node import difference
from stages.registry import STAGES
from stages.stage import Record
from train.files import sha256_file

pytestmark = pytest.mark.slow

CPUS = (1, 2)  # of the head, and of the node that is there from the start
EVERY = 20.0  # seconds between two deaths of nodes


@pytest.fixture(scope="module")
def cluster(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A cluster whose workers can reach the bucket, and read how long a unit takes."""
    pytest.importorskip("grpc", reason="grpcio, of ray[client], is not installed")
    pace = tmp_path_factory.mktemp("pace") / "seconds"
    pace.write_text("1")
    cluster = RayCluster(CPUS, {**s3_server.environment(), "PACE": str(pace)}, client=True)
    yield cluster
    cluster.close()


HOLD = "hold"
KEEP_PACE = f"""

def keep_pace(spec):
    file = Path(os.environ.get("PACE", "/dev/null"))
    while (pace := file.read_text()) == "{HOLD}" and spec["stage"] == "tokenize":
        time.sleep(0.05)
    time.sleep(float(pace) if pace not in ("", "{HOLD}") else 0)
"""


def build_locally(folder: Path) -> Work:
    """A mixture packed on this machine, by a project that cuts finely and whose units keep the pace that a file says.

    It says how many seconds each unit waits, or HOLD: those of the tokenizer wait until it says something else.
    """
    root = copy_project(folder, unit_bytes=30_000)
    worker = root / "pipeline/executors/worker.py"
    edit(worker, "    find_work(spec", "    keep_pace(spec)\n    find_work(spec")
    worker.write_text(worker.read_text() + KEEP_PACE)
    work = new_work(folder, root)
    work.run("pack_pretrain", "--workers", "2")
    return work


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """What the builds on the cluster must be equal to."""
    return build_locally(tmp_path_factory.mktemp("cluster"))


def upload(work: Work, server: S3Server, folder: Path) -> Work:
    """A recipe in `folder` whose corpus is in a new bucket, built by the project of `work`."""
    fsspec = pytest.importorskip("s3fs", reason="s3fs, of the extra s3, is not installed").S3FileSystem
    bucket = server.new_bucket()
    fsspec(endpoint_url=server.address, key="test", secret="test").put(str(work.corpus), bucket, recursive=True)
    remote = Work(folder, work.root, work.corpus)
    recipe = remote.write()
    for source in recipe["sources"].values():
        source["path"] = source["path"].replace(str(work.corpus), f"{bucket}/corpus")
    remote.write(sources=recipe["sources"])
    return remote


def packed(folder: str) -> list[tuple[str, str]]:
    """The files of a build with their sha256, as they are."""
    manifest = open_build(folder)
    return [(name, sha256_file(manifest.file(name))) for name, _ in manifest.packed_files()]


def tokenized(out: str) -> list[Record]:
    """The records of a stage that has more units than there are CPUs."""
    return list(records_beside(open_build(f"{out}/small/pretrain")).records("tokenize"))


def at_once(records: list[Record]) -> Counter[str]:
    """Node -> most of these units that ran there at the same time."""
    most: Counter[str] = Counter()
    for record in records:
        there = [other for other in records if other.node == record.node]
        running = sum(other.started <= record.started < other.finished for other in there)
        most[record.node.rpartition("/")[2]] = max(most[record.node.rpartition("/")[2]], running)
    return most


def finish(work: Work, driver: subprocess.Popen[str], seconds: float = 200) -> str:
    """Wait for a driver, which must succeed, and return what it said."""
    try:
        status = driver.wait(seconds)
    finally:
        kill(driver.pid)
    said = (work.folder / "stderr").read_text()
    assert status == 0, said
    return said


def test_a_build_on_three_nodes_has_the_bytes_of_a_local_one(
    local: Work, cluster: RayCluster, s3: S3Server, tmp_path: Path
) -> None:
    """The third node comes while the build runs, has none of our packages, and is used like the others.

    The first units of the tokenizer wait for it.
    """
    work, out = upload(local, s3, tmp_path), f"{s3.new_bucket()}/out"
    empty = tmp_path / "empty"
    empty.mkdir()
    options = ("--address", cluster.address, "--out", out)
    pace, changed = Path(cluster.environment["PACE"]), "the cluster has changed: 5 CPUs on 3 nodes"
    pace.write_text(HOLD)
    driver = work.start("run", "pack_pretrain", *options, **cluster.driver_environment())
    wait_for(lambda: "executor ray" in (tmp_path / "stderr").read_text(), "the driver", 120)
    mark = cluster.add_altered(2, {local.root / package: empty for package in PROJECT})
    wait_for(lambda: changed in (tmp_path / "stderr").read_text() or driver.poll() is not None, "the node", 120)
    pace.write_text("1")
    said = finish(work, driver)
    assert changed in said
    assert packed(f"{out}/small/pretrain") == packed(str(local.out / "small/pretrain"))
    most = at_once(tokenized(out))
    print(f"units of the tokenizer at once, by node: {dict(most)}")
    assert sorted(most.values()) == [1, 2, 2], (most, said)
    cluster.remove_altered(mark)


ADDRESSES = """
import json, os, sys, time
from pipeline.errors import UserError
from pipeline.executors.ray_address import resolve
for address, environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    began = time.monotonic()
    try:
        said = resolve(address)
    except UserError as error:
        said = f"{error.exit_code} {error}"
    print(json.dumps([said, time.monotonic() - began]))
"""


def test_an_address_is_understood_or_refused_in_a_line(cluster: RayCluster) -> None:
    """In a process of its own: the threads of grpc do not go with later forks of this one."""
    head, client = cluster.address.rpartition(":")[2], cluster.client_port
    token = {"RAY_AUTH_TOKEN": cluster.token}
    closed = free_port()
    cases: list[tuple[str, dict[str, str], str]] = [
        (f"127.0.0.1:{head}", token, f"127.0.0.1:{head}$"),
        (f"ray://localhost:{client}", token, f"ray://localhost:{client}$"),
        ("auto", {"RAY_ADDRESS": f"127.0.0.1:{head}"}, f"127.0.0.1:{head}$"),
        (f"127.0.0.1:{client}", token, f"1 .*is that of Ray Client; write --address ray://127.0.0.1:{client}$"),
        (f"ray://127.0.0.1:{head}", token, f"1 .*port {head} is the head's own"),
        (f"127.0.0.1:{closed}", token, "1 .*nobody listens there"),
        (f"ray://127.0.0.1:{closed}", token, "1 .*nobody listens there"),
        ("auto", {"RAY_ADDRESS": f"127.0.0.1:{closed}"}, f"1 RAY_ADDRESS=127.0.0.1:{closed}: nobody listens"),
        ("no-such-host.invalid:6379", token, "1 .*no such host is known here"),
        ("127.0.0.1", token, "2 .*a port is missing; forms are ray://host:10001"),
        ("http://127.0.0.1:8265", token, "2 .*a dashboard, which starts drivers: `ray job submit"),
        (f"127.0.0.1:{head}", {"RAY_AUTH_TOKEN": "x" * 40}, "1 .*asks for a token, and ours is not its; set RAY_AUTH"),
        (f"ray://127.0.0.1:{client}", {"RAY_AUTH_TOKEN": "x" * 40}, "1 .*asks for a token, and ours is not its"),
        (f"127.0.0.1:{head}", {"RAY_AUTH_MODE": "disabled"}, "1 .*asks for a token, and there is none"),
    ]
    asked = json.dumps([(address, environment) for address, environment, _ in cases])
    environment = {**os.environ, **cluster.driver_environment(), "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", ADDRESSES, asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases), done.stderr
    for (address, _, wanted), (said, seconds) in zip(cases, answers, strict=True):
        assert re.match(wanted, said) and "\n" not in said, (address, said)
        assert seconds < 6, (address, said)


def test_a_node_of_another_version_is_refused_by_name(local: Work, cluster: RayCluster, tmp_path: Path) -> None:
    """Its site-packages say that they have another."""
    text = metadata.distribution("pyarrow").read_text("METADATA") or ""
    (file,) = (file for file in metadata.files("pyarrow") or () if file.name == "METADATA")
    (tmp_path / "METADATA").write_text(re.sub(r"(?m)^Version: .*$", "Version: 0.1.2", text, count=1))
    mark = cluster.add_altered(4, {Path(str(file.locate())): tmp_path / "METADATA"})
    work = Work(tmp_path, local.root, local.corpus)
    work.write()
    said = work.fails(
        "run", "filter", "--executor", "ray", "--address", cluster.address, **cluster.driver_environment()
    )
    version = metadata.version("pyarrow")
    assert re.search(rf"node \S+/[0-9a-f]{{8}} .*: pyarrow is 0\.1\.2, the driver's {version}; install req", said), said
    cluster.remove_altered(mark)


def test_what_a_node_lacks_is_named() -> None:
    module = "stages.filter.work"
    spec: Any = {"work": f"{module}:work", "code": fingerprint(module), "versions": versions(("numpy",))}
    assert difference(spec) == ""
    assert difference({**spec, "code": "0" * 64}).startswith(f"the code of {module} is not the driver's")
    spec["versions"] = {"python": "2.7", "no-such-library": "1.0"}
    ours = spec["versions"] and versions(())["python"]
    assert difference(spec) == f"no-such-library is not installed, the driver's 1.0; python is {ours}, the driver's 2.7"


@pytest.mark.soak
def test_lost_nodes_a_killed_driver_and_a_failing_store_change_no_byte(
    local: Work, cluster: RayCluster, s3: S3Server, tmp_path: Path
) -> None:
    """A node goes every 20 seconds and another comes, one of them with notice. `status` lists each, and the driver."""
    work, out = upload(local, s3, tmp_path), f"{s3.new_bucket()}/out"
    options = ("pack_pretrain", "--address", cluster.address, "--out", out)
    pace = Path(cluster.environment["PACE"])
    pace.write_text("4")
    s3.fault_rate = 0.1
    nodes = [cluster.add(2)]

    def lose_a_node(how: Callable[[str], None], stage: str = "") -> None:
        wait_for(lambda: cluster.busy_workers(nodes[-1], stage) or driver.poll() is not None, "units on the node", 240)
        if driver.poll() is None:
            how(nodes[-1])
            nodes.append(cluster.add(2))
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(EVERY)

    driver = work.start("run", *options, **cluster.driver_environment())
    lose_a_node(cluster.remove, "filter")
    lose_a_node(cluster.preempt)
    kill(driver.pid)
    driver.wait()
    driver = work.start("run", *options, **cluster.driver_environment())
    while driver.poll() is None:
        lose_a_node(cluster.remove)
    said = finish(work, driver)
    s3.fault_rate = 0.0
    pace.write_text("1")
    *gone, left = nodes
    cluster.remove(left)
    assert packed(f"{out}/small/pretrain") == packed(str(local.out / "small/pretrain"))
    status = work.cli("status", "--out", out).stdout
    print(f"{len(gone)} nodes lost, {dict(s3.failed)} requests failed\n{said}\n{status}")
    build = open_build(f"{out}/small/pretrain")
    lost = re.findall(r"gone: \S+/(\w+) \(|node (?:\S+/)?(\w+): the node is gone", status)
    assert len(gone) >= 3 and set(gone) <= {node for names in lost for node in names}, (gone, status)
    assert status.count("was killed: ") == 1 and len(re.findall(r"(?m)  ended *$", status)) == 1
    records = [record for stage in STAGES for record in records_beside(build).records(stage)]
    assert any(f"{node}: the node is gone" in why for record in records for why in record.tries for node in gone)
    assert "the node is gone" in status and "where units ran" in status


def goes_on(work: Work, local: Work, driver: subprocess.Popen[str], options: tuple[str, ...], said_first: str) -> None:
    """A driver must end with one line that has the whole command; what was done is kept, and the rest is built here."""
    status = driver.wait(120)
    said = (work.folder / "stderr").read_text()
    assert status == 1, said
    last = said.splitlines()[-1]
    assert last.startswith((said_first, "error: the driver was ended")), said
    assert last.endswith(f"goes on: {shlex.join(['python', '-m', *work.command('run', *options)[2:]])}"), last
    assert "Traceback" not in said, said
    done = work.records()
    work.run("pack_pretrain", "--workers", "8")
    assert all(work.records()[unit]["attempt"] == record["attempt"] for unit, record in done.items())
    assert work.results() == local.results()


@pytest.mark.soak
def test_the_last_line_is_ours_when_ray_client_is_cut_off(local: Work, cluster: RayCluster, tmp_path: Path) -> None:
    work = Work(tmp_path, local.root, local.corpus)
    work.write()
    wire = Wire(cluster.client_port)
    options = ("pack_pretrain", "--address", f"ray://127.0.0.1:{wire.port}")
    driver = work.start("run", *options, **cluster.driver_environment())
    wait_for(lambda: list(work.out.glob("store/tokenize/??/*/record.json")), "the tokenizer", 240)
    wire.cut()
    goes_on(work, local, driver, options, f"error: the head of the cluster at ray://127.0.0.1:{wire.port} has not")


@pytest.mark.soak
def test_a_node_of_which_nothing_is_heard_for_a_minute_changes_no_byte(local: Work, tmp_path: Path) -> None:
    """Its units are done elsewhere; then it comes back, and finishes what nobody waits for any more."""
    work = Work(tmp_path, local.root, local.corpus)
    work.write()
    pace = tmp_path / "pace"
    pace.write_text("2")
    health = {"period_ms": "1000", "timeout_ms": "2000", "failure_threshold": "3"}
    watched = {f"RAY_health_check_{name}": value for name, value in health.items()}
    cluster = RayCluster((1, 2), {"PACE": str(pace), **watched})
    try:
        (node,) = cluster.nodes
        driver = work.start("run", "pack_pretrain", "--address", cluster.address, **cluster.driver_environment())
        wait_for(lambda: cluster.busy_workers(node, "tokenize"), "units on the node", 240)
        cluster.freeze(node)
        silent = time.monotonic()
        status = driver.wait(300) if driver.poll() is None else driver.poll()
        said = (tmp_path / "stderr").read_text()
        time.sleep(max(0.0, 60 - (time.monotonic() - silent)))
        records = work.records()
        cluster.thaw(node)
        time.sleep(5)
        assert status == 0, said
        assert re.search(r"tokenize \S+ \S+: its node does not answer any more; trying again", said), said
        assert re.search(rf"gone: \S+/{node} \(", said), said
        assert work.records() == records, "what the node does late changes no record"
        assert work.results() == local.results()
    finally:
        cluster.close()


@pytest.mark.soak  # a minute, most of it waiting for the head
def test_the_last_line_is_ours_when_the_head_dies(local: Work, cluster: RayCluster, tmp_path: Path) -> None:
    """It names the whole command, and what was done is kept."""
    work = Work(tmp_path, local.root, local.corpus)
    work.write()
    options = ("pack_pretrain", "--address", cluster.address)
    driver = work.start("run", *options, **cluster.driver_environment())
    wait_for(lambda: list(work.out.glob("store/tokenize/??/*/record.json")), "the tokenizer", 240)
    cluster.kill_head()
    goes_on(work, local, driver, options, f"error: the head of the cluster at {cluster.address} has not")
