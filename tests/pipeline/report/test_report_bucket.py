"""The pages of a build in a bucket are those of the same build on a disk, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from built import Inline, build, small
from s3_server import S3Server

from pipeline.engine.context import Context, drive
from pipeline.engine.progress import Progress
from pipeline.engine.store import open_store
from pipeline.errors import UsageError
from pipeline.recipe import parse_recipe
from pipeline.report.command import make_report
from stages.registry import STAGES
from train.data.manifest import load_manifest

pytestmark = pytest.mark.slow


def test_a_build_in_a_bucket_has_the_same_pages(s3: S3Server, tmp_path: Path) -> None:
    local = small(tmp_path / "local")
    recipe = load_manifest(local).recipe
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    out = f"{s3.new_bucket()}/out"
    context = Context(parse_recipe(recipe, "test"), open_store(out), Inline, Progress(True))
    drive(context, context.stage(STAGES["pack_anneal_mix"]))
    for built in (context, build(tmp_path / "local", recipe)):
        built.save_state()
    s3.reset()
    s3.fault_rate = 0.05
    pages = {}
    for place, store in (("disk", str(tmp_path / "local/build")), ("bucket", out)):
        make_report(str(tmp_path / "small.yaml"), None, store, str(tmp_path / place), 100_000, "20MB")
        pages[place] = {path.name: path.read_bytes() for path in (tmp_path / place).iterdir()}
    assert len(pages["bucket"]) == 9 and pages["bucket"] == pages["disk"]
    assert s3.paths, "the bucket was asked"
    with pytest.raises(UsageError, match="name a folder of this machine with --to"):
        make_report(str(tmp_path / "small.yaml"), None, out, None, 100_000, "20MB")
