"""Ray's share of the time: units of one second, real but for their work, which is to wait.

A cluster of several nodes on this machine has as many logical CPUs as asked for; driver, engine, executor, workers and
the store are those of a run, and results go to moto's S3 server in this process, which counts the requests. A CPU that
does not wait for a unit's work is lost to what lies around it: Ray, the driver, the store, and (on a machine with few
cores) the processors that all of them share, so each share is an upper bound.

    python -m benchmarks.ray_share [--units 10000] [--seconds 1.0] [--nodes 2] [--cpus 8]

share, whole: 1 - units x seconds / (CPUs x seconds from the start of the driver to its end).
share, steady: the same between the moment when every CPU had begun a unit and the last unit's start.
between units: from a record's `finished` (its outputs are stored) to the next unit's start in the same process: the
record's own request, Ray, and what a worker prepares; its share is Ray's at most. of outputs: what a unit takes beside
its work: the upload.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import measure

STAGE = "filter"  # whose name the units have
WANTED = 0.05


def child(arguments: argparse.Namespace) -> dict[str, Any]:
    """Drive the units from this process, whose `stages` has the module `nap`."""
    from pipeline.engine.context import Context, drive
    from pipeline.engine.executor import Reply, UnitSpec
    from pipeline.engine.progress import Progress
    from pipeline.engine.store import open_store
    from pipeline.executors.ray import RayExecutor
    from pipeline.recipe import parse_recipe
    from stages import nap  # type: ignore[attr-defined]  # benchmarks/nap.py, copied there
    from stages.registry import STAGES
    from stages.stage import Unit

    spans: list[tuple[float, float, int]] = []  # start, end, process

    class Noting(RayExecutor):
        async def submit(self, spec: UnitSpec) -> Reply:
            reply = await super().submit(spec)
            record = reply["record"]
            spans.append((record["started"], record["finished"], record["counts"]["pid"]))
            return reply

    began = time.time()
    raw = {"name": "naps", "sources": {"web": {"from": "parquet", "path": "/nowhere"}}}
    context = Context(
        parse_recipe(raw, "naps"), open_store(arguments.child), lambda: Noting(arguments.address), Progress(quiet=True)
    )
    units = (
        Unit(nap.nap, {"seconds": arguments.seconds, "number": i}, [], f"{i:06d}", "web")
        for i in range(arguments.units)
    )
    drive(context, context.map(STAGES[STAGE], units))
    wall = time.time() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpus = arguments.nodes * arguments.cpus
    by_process: dict[int, list[tuple[float, float]]] = {}
    for start, finish, pid in sorted(spans):
        by_process.setdefault(pid, []).append((start, finish))
    first_starts = sorted(runs[0][0] for runs in by_process.values())
    low, high = first_starts[cpus - 1], max(start for start, _, _ in spans)
    worked = sum(max(0.0, min(start + arguments.seconds, high) - max(start, low)) for start, _, _ in spans)
    between = [b[0] - a[1] for runs in by_process.values() for a, b in pairwise(runs) if a[1] >= low]
    uploads = [finish - start - arguments.seconds for start, finish, _ in spans if start >= low]
    cycle = arguments.seconds + statistics.fmean(uploads) + statistics.fmean(between)
    return {
        "units": len(spans),
        "wall_seconds": wall,
        "ideal_seconds": arguments.units * arguments.seconds / cpus,
        "first_unit_after_seconds": first_starts[0] - began,
        "all_busy_after_seconds": low - began,
        "share_whole": 1 - len(spans) * arguments.seconds / (cpus * wall),
        "share_steady": 1 - worked / (cpus * (high - low)),
        "share_between_units": statistics.fmean(between) / cycle,
        "share_of_outputs": statistics.fmean(uploads) / cycle,
        "ms_between_units": quantiles(between),
        "ms_of_outputs": quantiles(uploads),
        "driver_cpu_ms_a_unit": 1000 * (used.ru_utime + used.ru_stime) / len(spans),
        "driver_peak_mb": round(used.ru_maxrss / 1024),
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return the middle, the mean and the 95th percentile, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "median": 1000 * measure.median(ordered),
        "mean": 1000 * statistics.fmean(ordered),
        "p95": 1000 * ordered[len(ordered) * 95 // 100],
    }


def main() -> None:
    """Start the store and the cluster, let a process drive the units, and save what was seen."""
    parser = measure.parser(__doc__, units=10_000, seconds=1.0, nodes=2, cpus=8)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments)))
        return
    measure.import_harness()
    from engine_harness import copy_project
    from ray_cluster import RayCluster
    from s3_server import S3Server

    machine = measure.machine(("ray", "moto", "obstore"))
    folder = Path(tempfile.mkdtemp(prefix="naps-"))
    server, cluster = S3Server(), None
    try:
        root = copy_project(folder)
        shutil.copy(Path(__file__).with_name("nap.py"), root / "stages")
        cluster = RayCluster((arguments.cpus,) * arguments.nodes, server.environment())
        bucket = server.new_bucket()
        flags = [f"--{name}={getattr(arguments, name)}" for name in ("units", "seconds", "nodes", "cpus")]
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, *flags, f"--child={bucket}/out", f"--address={cluster.address}"],
            cwd=root,
            env={
                **os.environ,
                **server.environment(),
                **cluster.driver_environment(),
                "PYTHONPATH": os.pathsep.join([str(root), str(measure.ROOT)]),
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = measure.rounded(json.loads(done.stdout.splitlines()[-1]), 4)
        requests = {kind: round(count / found["units"], 4) for kind, count in sorted(server.requests.items())}
    finally:
        if cluster is not None:
            cluster.close()
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
    asked = {name: getattr(arguments, name) for name in ("units", "seconds", "nodes", "cpus")}
    measure.report(
        "ray_share",
        {
            "machine": {**machine, "load_after": round(os.getloadavg()[0], 2)},
            "asked": asked,
            **found,
            "requests_a_unit": requests,
            "wanted": WANTED,
        },
    )


if __name__ == "__main__":
    main()
