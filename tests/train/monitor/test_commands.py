"""Commands that messages suggest are whole: a shell reads them back to what was given."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.manifest import ManifestError, load_manifest
from train.monitor.commands import continue_command, trace_command

names = st.text(min_size=1).filter(lambda text: "\0" not in text)
settings = st.lists(st.sampled_from(["train.steps=5", "train.out=a b", "train.resume=none", "train.on_spike=stop"]))


@given(names, names, settings, st.integers(1, 8))
def test_a_run_goes_on_with_the_settings_it_had(manifest, folder, given_settings, world):
    run = {"command": {"manifest": manifest, "folder": folder, "set": given_settings}, "world_size": world}
    words = shlex.split(continue_command(run, "train.on_spike=skip"))
    start = ["python"] if world == 1 else ["torchrun", "--nproc-per-node", str(world)]
    kept = [text for text in given_settings if text == "train.steps=5"]
    own = [f"train.out={folder}", "train.resume=auto", "train.on_spike=skip"]
    assert words == [*start, "train/main.py", "--manifest", manifest, "--set", *kept, *own]
    assert shlex.split(trace_command(manifest, folder, 3))[4:] == [manifest, "--run", folder, "--step", "3"]


@pytest.mark.parametrize("damage", [None, "{"])
@pytest.mark.parametrize(
    ("noted", "recipe", "settings"),
    [
        (json.dumps({"file": "../a b/r.yaml", "set": ["seed=1; x"]}), "a b/r.yaml", ["--set", "seed=1; x"]),
        ("{", "RECIPE", []),
        ("[]", "RECIPE", []),
        (None, "RECIPE", []),
    ],
)
@pytest.mark.parametrize(("mixture", "stage"), [("pretrain", "pack_pretrain"), ("anneal", "pack_anneal_mix")])
def test_a_manifest_that_is_not_there_says_how_to_build_it(
    tmp_path: Path, damage: str | None, noted: str | None, recipe: str, settings: list[str], mixture: str, stage: str
) -> None:
    folder = tmp_path / "out/small" / mixture
    folder.parent.mkdir(parents=True)
    if damage:
        folder.mkdir()
        (folder / "manifest.json").write_text(damage)
    if noted is not None:
        (folder.parent / "recipe.json").write_text(noted)
    named = recipe if recipe == "RECIPE" else str(tmp_path / recipe)
    out = ["--out", str(tmp_path / "out")] if settings else []
    words = ["python", "-m", "pipeline", "run", stage, "--recipe", named, *settings, *out]
    for path in (folder, folder / "manifest.json"):
        with pytest.raises(ManifestError) as error:
            load_manifest(path)
        assert shlex.split(str(error.value).split("`")[1]) == words + ["--force"] * bool(damage)
