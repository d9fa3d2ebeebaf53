"""`fetch`: a build copied from a bucket, or from another disk, to a folder, for machines that have no client for it."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pipeline.errors import UserError
from train.data.manifest import Manifest, ManifestError, PackedFile, load_manifest, path_below
from train.data.remote import RemoteManifest, open_manifest
from train.files import fsync_path, sha256_file

AT_A_TIME = 8  # files
NEWS_EVERY = 10.0  # seconds
MANIFEST = "manifest.json"  # copied last: a folder without it is not whole, and the same command goes on


def fetch_build(address: str, folder: Path) -> Manifest:
    """Copy the build whose manifest is at `address` into `folder`; files that are there and whole stay.

    Returns the copy's manifest. Raises UserError where `folder` holds something else, and where a file differs from
    what the manifest says; ManifestError, BucketError, UnavailableError.
    """
    manifest = open_manifest(address)
    check_folder(manifest, folder)
    began = said = time.monotonic()
    files = manifest.packed_files()
    copied, kept = 0, 0
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        running = [pool.submit(fetch_file, manifest, file, folder) for file in files]
        try:
            for number, done in enumerate(as_completed(running), 1):
                size = done.result()
                copied, kept = copied + size, kept + (size == 0)
                if time.monotonic() > said + NEWS_EVERY or number == len(files):
                    said = time.monotonic()
                    rate = copied / 1e6 / max(said - began, 1e-3)
                    print(
                        f"{number:,} of {len(files):,} files, {copied / 1e9:.2f} GB copied, {rate:,.0f} MB/s",
                        flush=True,
                    )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    copy_file(manifest, MANIFEST, folder / MANIFEST)
    print(f"{folder}: {len(files):,} files, {kept:,} of them were there; every sha256 is the manifest's")
    return load_manifest(folder)


def check_folder(manifest: Manifest, folder: Path) -> None:
    """Raise UserError where a folder holds another build, or files that are none of this one's."""
    if (folder / MANIFEST).exists():
        there = load_manifest(folder)
        if there.digest == manifest.digest:
            return
        raise UserError(
            f"{folder} holds build {there.build_id[:16]}, this is {manifest.build_id[:16]}; name a new folder"
        )
    named = {Path(file.path).parts[0] for file in manifest.packed_files()}
    others = (
        [path.name for path in folder.iterdir() if path.name not in named and not path.name.endswith(".part")]
        if folder.is_dir()
        else []
    )
    if others:
        raise UserError(f"{folder} holds other things ({', '.join(sorted(others)[:3])}); name a new folder")


def fetch_file(manifest: Manifest, file: PackedFile, folder: Path) -> int:
    """Copy one file, if it is not there and whole. Returns the bytes that were copied. Raises UserError."""
    path = path_below(folder, file.path)
    if path.is_file() and sha256_file(path) == file.sha256:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    copy_file(manifest, file.path, part)
    if sha256_file(part) != file.sha256:
        part.unlink()
        raise UserError(
            f"{manifest.folder}: {file.path} is damaged: its sha256 is not the manifest's; "
            f"bring it back: {manifest.pack_command()}"
        )
    fsync_path(part)
    part.replace(path)
    return path.stat().st_size


def copy_file(manifest: Manifest, relative: str, target: Path) -> None:
    """Copy a file of a build from its bucket or folder. Raises ManifestError where it is not there."""
    try:
        if isinstance(manifest, RemoteManifest):
            manifest.cache.bucket.download(f"{manifest.cache.build}/{relative}", target)
        else:
            shutil.copyfile(manifest.file(relative), target)
    except FileNotFoundError:
        again = manifest.pack_command()
        raise ManifestError(f"{manifest.folder}: {relative} is not there; bring it back: {again}") from None
