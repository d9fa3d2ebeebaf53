"""What a manifest may name."""

from __future__ import annotations

import dataclasses

import pytest

from train.data.manifest import ManifestError, load_manifest


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "link"])
def test_a_manifest_names_files_below_its_folder_alone(name, tmp_path, pretrain):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/link").symlink_to(tmp_path / "secret")
    manifest = dataclasses.replace(load_manifest(pretrain), folder=str(tmp_path / "m"))
    with pytest.raises(ManifestError, match="which leads out of its folder"):
        manifest.file(name)
