"""What a manifest may name."""

from __future__ import annotations

import dataclasses

import pytest

from train.data.manifest import ManifestError, load_manifest


@pytest.mark.parametrize("damage", ["", "{", "[" * 10**5, '{"seed": ' + "9" * 5000 + "}", "[]", "\xff"])
@pytest.mark.parametrize("notes", ["", "{", "[" * 10**5, "[]", "3", '{"file": 3}'])
def test_a_damaged_manifest_is_named_and_so_is_what_builds_it_again(damage, notes, tmp_path):
    (tmp_path / "q/anneal").mkdir(parents=True)
    (tmp_path / "q/anneal/manifest.json").write_text(damage, encoding="latin-1")
    (tmp_path / "q/recipe.json").write_text(notes)
    with pytest.raises(ManifestError, match=r"manifest\.json: "):
        load_manifest(tmp_path / "q/anneal")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "link"])
def test_a_manifest_names_files_below_its_folder_alone(name, tmp_path, pretrain):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/link").symlink_to(tmp_path / "secret")
    manifest = dataclasses.replace(load_manifest(pretrain), folder=str(tmp_path / "m"))
    with pytest.raises(ManifestError, match="which leads out of its folder"):
        manifest.file(name)
