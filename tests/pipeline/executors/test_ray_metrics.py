"""What each node of a real cluster serves to Prometheus of the units that it ran."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from engine_harness import Work, new_work, wait_for
from ray_cluster import RayCluster

pytestmark = pytest.mark.slow

LINE = re.compile(r"(?m)^(ray_shardmill_\w+?)(?:_total)?\{([^}]*)\} (\S+)$")


def served(cluster: RayCluster) -> Counter[tuple[str, str, str]]:
    """(metric, stage, outcome) -> its sum over all nodes."""
    found: Counter[tuple[str, str, str]] = Counter()
    for port in cluster.metrics_ports():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            for name, labels, value in LINE.findall(reply.read().decode()):
                label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
                found[name.removeprefix("ray_shardmill_"), label["stage"], label.get("outcome", "")] += float(value)
    return found


def wanted(work: Work) -> dict[tuple[str, str, str], float]:
    """The same by the records."""
    sums: dict[tuple[str, str, str], Any] = Counter()
    for (stage, _), record in work.records().items():
        sizes = {output["path"]: output["bytes"] for output in record["outputs"]}
        sums["units", stage, "done"] += 1
        sums["output_bytes", stage, ""] += sum(sizes.values())
        sums["unit_seconds", stage, ""] += record["seconds"]
    return {key: value for key, value in sums.items() if value}


def test_units_bytes_and_seconds_are_served_by_stage(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="ray[default] is not installed")
    work = new_work(tmp_path)
    recipe = work.write()
    cluster = RayCluster((1, 1), {"RAY_metrics_report_interval_ms": "500"})
    try:
        options = ("run", "filter", "--executor", "ray", "--address", cluster.address)
        done = work.cli(*options, **cluster.driver_environment())
        assert done.returncode == 0, done.stderr
        (tmp_path / "damaged.parquet").write_bytes(b"no parquet")
        bad = {"from": "parquet", "path": str(tmp_path / "damaged.parquet")}
        work.write(sources={**recipe["sources"], "bad": bad})
        work.fails(*options, **cluster.driver_environment())
        expected = wanted(work)
        assert expected["units", "filter", "done"] > 2 and expected["output_bytes", "download", ""] > 1000
        expected["units", "download", "permanent"] = 1
        rounded = {key: round(value, 2) for key, value in expected.items()}
        seen = wait_for(lambda: served(cluster) if len(served(cluster)) >= len(rounded) else None, "metrics", 30)
        assert {key: round(value, 2) for key, value in seen.items()} == pytest.approx(rounded, abs=0.02)
    finally:
        cluster.close()
