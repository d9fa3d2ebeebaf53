"""Random deaths of workers, raylets, nodes and drivers while the bucket fails one request in ten: no byte differs."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from engine_harness import copy_project, kill, new_work
from ray_cluster import RayCluster
from s3_server import S3Server
from test_cluster import finish, packed, upload

from pipeline.commands.clean import unused_units
from pipeline.engine import scratch
from pipeline.engine.store import RECORD, Store, open_store

pytestmark = [pytest.mark.slow, pytest.mark.soak]

FAULTS = 100
PAUSE = (2.0, 8.0)  # seconds between two
KINDS = ("worker", "worker", "node", "raylet", "driver", "notice")


def attempts(store: Store) -> dict[tuple[str, str], str]:
    """(stage, key) -> the attempt whose record stands."""
    found = ((unit, store.find(unit.stage, unit.key)) for unit in store.units())
    return {(unit.stage, unit.key): record.attempt for unit, record in found if record is not None}


def left_over(store: Store) -> list[str]:
    """Objects that no record names, after `clean` has taken what it calls unused."""
    for removal in [*unused_units(store, False), *store.unused_builds()]:
        store.remove(removal)
    wrong = []
    for unit in store.units():
        record = store.find(unit.stage, unit.key)
        named = {store.absolute(output) for output in record.outputs} if record else set()
        wrong += [f.path for f in unit.folder.files if f.path not in named and not f.path.endswith(f"/{RECORD}")]
    return wrong


def one_fault(kind: str, cluster: RayCluster, driver: subprocess.Popen[str], rng: random.Random) -> None:
    """Let something die."""
    if kind == "driver":
        kill(driver.pid)
        driver.wait()
    elif kind == "notice":
        driver.send_signal(signal.SIGTERM)
        driver.wait(60)
    elif kind == "worker":
        pids = [pid for node in cluster.nodes for pid in cluster.busy_workers(node, "")]
        for pid in rng.sample(pids, min(1, len(pids))):
            kill(pid)
    else:
        node = cluster.nodes.pop(rng.randrange(len(cluster.nodes)))
        (cluster.remove if kind == "node" else cluster.kill_raylet)(node)
        cluster.nodes.append(cluster.add(2))


def test_no_byte_differs_after_a_hundred_faults(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(13)
    local = new_work(tmp_path, copy_project(tmp_path, unit_bytes=30_000))
    local.run("pack_pretrain", "--workers", "4")
    wanted = packed(str(local.out / "small/pretrain"))
    scratch_folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))  # short: Ray has sockets in it
    temporary = {"TMPDIR": str(scratch_folder)}
    cluster = RayCluster((1, 2, 2), {**s3.environment(), **temporary})
    done = builds = 0
    try:
        environment = {**cluster.driver_environment(), **temporary}
        while done < FAULTS:
            folder = tmp_path / f"build{builds}"
            folder.mkdir()
            work, out = upload(local, s3, folder), f"{s3.new_bucket()}/out"
            s3.fault_rate = 0.1
            options = ("pack_pretrain", "--address", cluster.address, "--out", out)
            driver = work.start("run", *options, **environment)
            seen: dict[tuple[str, str], str] = {}
            while done < FAULTS:
                time.sleep(rng.uniform(*PAUSE))
                if driver.poll() == 0:
                    break
                if driver.poll() is not None:
                    driver = work.start("run", *options, **environment)
                    continue
                one_fault(rng.choice(KINDS), cluster, driver, rng)
                done += 1
                seen |= attempts(open_store(out))
            if driver.poll() is not None and driver.poll() != 0:
                driver = work.start("run", *options, **environment)
            finish(work, driver, 300)
            s3.fault_rate = 0.0
            builds += 1
            assert packed(f"{out}/small/pretrain") == wanted
            store = open_store(out)
            after = attempts(store)
            assert {unit: after.get(unit) for unit in seen} == seen, "no unit was committed twice"
            assert left_over(store) == []
            print(f"{done} faults, {builds} builds, {len(after)} units, {sum(s3.failed.values())} requests failed")
    finally:
        cluster.close()
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(scratch_folder))
    scratch.delete_abandoned()
    assert list(scratch_folder.glob(f"{scratch.PREFIX}*")) == []
    shutil.rmtree(scratch_folder)
