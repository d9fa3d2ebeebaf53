"""Random deaths of workers, raylets, nodes and drivers while the bucket fails one request in ten: no byte differs."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_harness import Work, edit, kill
from ray_cluster import RayCluster
from s3_server import S3Server
from test_cluster import build_locally, packed, upload

from pipeline.engine import journal, scratch
from pipeline.engine.object_store import ObjectStore
from pipeline.engine.store import EVENTS, RECORD, UNITS

pytestmark = [pytest.mark.slow, pytest.mark.soak]

PAUSE = (0.5, 3.0)  # seconds between two faults, while a driver works
# Drawn from. A driver takes ten times as long to come back as a worker.
KINDS = (*["worker"] * 6, "node", "node", "raylet", "raylet", "driver", "notice")
ALIVE = 20  # seconds that the lease of a killed driver lives; a renewal comes every 15
WAIT = 600  # seconds for any one thing, on a machine that serves others too


def committed(store: ObjectStore) -> dict[str, str]:
    """Record -> its etag, which is another one for each attempt."""
    return {found.path: found.stamp for found in store.bucket.objects(store.root) if found.path.endswith(f"/{RECORD}")}


def left_over(store: ObjectStore) -> list[str]:
    """Objects that no record, no pointer and no account of a run stands for."""
    recipe = f"{store.out}/small"
    notes = rf"{store.out}/(small/({UNITS}/\w+|builds/[\w-]+|[\w-]+)\.json|store/{EVENTS}/[\w-]+\.json)"
    named: set[str] = set()
    for name in store.names(recipe):
        named |= set(store.published("small", name.removesuffix(".json")).values())
    for unit in store.units():
        record = store.find(unit.stage, unit.key)
        if record is not None:
            named |= {store.absolute(output) for output in record.outputs} | {f"{unit.folder.path}/{RECORD}"}
    paths = [found.path for found in store.bucket.objects(store.out)]
    return [path for path in paths if path not in named and not re.fullmatch(notes, path)]


def one_fault(kind: str, cluster: RayCluster, driver: subprocess.Popen[str], rng: random.Random) -> bool:
    """Let something die. False where there is nothing of the kind that works."""
    if kind == "driver":
        kill(driver.pid)
        driver.wait()
    elif kind == "notice":
        driver.send_signal(signal.SIGTERM)
        driver.wait(WAIT)
    elif kind == "worker":
        pids = [pid for node in cluster.nodes for pid in cluster.busy_workers(node)]
        for pid in rng.sample(pids, min(1, len(pids))):
            kill(pid)
        return pids != []
    else:
        node = cluster.nodes.pop(rng.randrange(len(cluster.nodes)))
        (cluster.remove if kind == "node" else cluster.kill_raylet)(node)
        cluster.nodes.append(cluster.add(2))
    return True


def finish_under_faults(
    start: Callable[[], subprocess.Popen[str]],
    said: Path,
    cluster: RayCluster,
    rng: random.Random,
    most: int,
    store: ObjectStore,
) -> tuple[Counter[str], dict[str, str]]:
    """Start a driver as often as it takes until one succeeds, with `most` faults once it works, which `said` tells.

    Returns the faults by kind, and the records that were seen.
    """
    faults: Counter[str] = Counter()
    seen: dict[str, str] = {}
    driver = start()
    while driver.poll() != 0:
        if driver.poll() is not None:
            driver = start()
        time.sleep(rng.uniform(*PAUSE))
        if driver.poll() is None and "executor ray" in said.read_text() and faults.total() < most:
            kind = rng.choice(KINDS)
            faults[kind] += one_fault(kind, cluster, driver, rng)
            now = committed(store)
            assert {path: now.get(path) for path in seen} == seen, "no unit was committed twice"
            seen = now
    return faults, committed(store)


@pytest.mark.parametrize("most", [pytest.param(8, id="few"), pytest.param(100, id="many")])
def test_no_byte_differs_whatever_dies(
    most: int, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Build after build in new buckets, until there were `most` faults; then what is left in all of them, and here."""
    monkeypatch.setattr(journal, "NEWEST", 1000)
    began = time.monotonic()
    rng = random.Random(13)
    local = build_locally(tmp_path)
    edit(local.root / "pipeline/commands/clean.py", "YOUNG = timedelta(hours=1)", "YOUNG = timedelta(0)")
    edit(
        local.root / "pipeline/engine/leases.py", "ALIVE = timedelta(seconds=90)", f"ALIVE = timedelta(seconds={ALIVE})"
    )
    wanted = packed(str(local.out / "small/pretrain"))
    temporary = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))  # short: Ray has sockets in it
    (tmp_path / "pace").write_text("2")
    variables = {"TMPDIR": str(temporary), "PACE": str(tmp_path / "pace")}
    cluster = RayCluster((1, 2, 2), {**s3.environment(), **variables})
    faults: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    stores: list[ObjectStore] = []
    failed = 0
    try:
        while faults.total() < most:
            folder = tmp_path / f"build{len(stores)}"
            folder.mkdir()
            work, store = upload(local, s3, folder), ObjectStore(f"{s3.new_bucket()}/out")

            def start(work: Work = work, out: str = store.out) -> subprocess.Popen[str]:
                if (said := work.folder / "stderr").exists():
                    ends.update(line[:200] for line in said.read_text().splitlines() if line.startswith("error: "))
                environment = {**cluster.driver_environment(), **variables}
                return work.start("run", "pack_pretrain", "--address", cluster.address, "--out", out, **environment)

            s3.fault_rate = 0.1
            new, seen = finish_under_faults(start, work.folder / "stderr", cluster, rng, most - faults.total(), store)
            failed += s3.failed.total()
            s3.fault_rate = 0.0
            faults += new
            stores.append(store)
            assert packed(f"{store.out}/small/pretrain") == wanted
            assert {path: stamp for path, stamp in committed(store).items() if path in seen} == seen
            ended = [run.events[-1][1] for run in journal.read_run_events(store) if run.ended]
            stopped = ended.count("ended early: SIGTERM")  # the last one may have come when all was done
            assert ended[-1] == "ended" and 0 <= new["notice"] - stopped <= 1, ended
            print(f"{faults.total()} faults, {len(stores)} builds, {time.monotonic() - began:.0f} s")
    finally:
        cluster.close()
    print(f"{dict(faults)}, {failed} requests failed; drivers gave up: {dict(ends)}")
    time.sleep(ALIVE)
    for store in stores:
        done = local.cli("clean", "--out", store.out)
        assert done.returncode == 0, done.stderr
        assert left_over(store) == []
        assert packed(f"{store.out}/small/pretrain") == wanted
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(temporary))
    time.sleep(scratch.MOMENT)
    scratch.delete_abandoned()  # as the next command does
    assert [path.name for path in temporary.iterdir() if path.name != "ray"] == []
    shutil.rmtree(temporary)
