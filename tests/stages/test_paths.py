"""Local or remote, a name or a pattern: one answer everywhere."""

from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import paths
from stages.errors import DataError
from stages.sources.files import list_files, open_source, whole_file_units

LINE = b'{"text": "A text."}\n'


@pytest.mark.parametrize(
    "path", ["s3://bucket/a", "hf://datasets/o/n", "memory://a", "https://x/y", "zip://a::s3://b/c"]
)
def test_a_path_with_a_scheme_is_remote(path):
    assert paths.is_remote(path)


@pytest.mark.parametrize("path", ["a", "/a", "a::b.jsonl", "c:/x", "file:///a", "file:///a::b", "s3:/a", ""])
def test_without_a_scheme_or_with_file_a_path_is_local(path):
    assert not paths.is_remote(path)
    assert not paths.local_path(path).startswith("file:")


def test_a_local_path_is_absolute_and_a_chain_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.file_system("exp::a")[1] == str(tmp_path / "exp::a")
    assert paths.file_system("file:///x/y/")[1] == "/x/y"
    assert paths.file_system("~/x")[1] == str(Path.home() / "x")


NAMES = st.text("ab[]*?!-{}", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))


@given(folder=NAMES, name=NAMES)
def test_what_exists_is_taken_as_it_is_written(tmp_path_factory, folder, name):
    root = tmp_path_factory.mktemp("paths")
    file = root / folder / f"{name}.jsonl"
    file.parent.mkdir()
    file.write_bytes(LINE)
    (file.parent / "other.jsonl").write_bytes(LINE)
    assert list_files(str(file), (".jsonl",)) == [(str(file), file.name)]
    everything = sorted([(str(file), file.name), (str(file.parent / "other.jsonl"), "other.jsonl")], key=lambda f: f[1])
    assert list_files(str(file.parent), (".jsonl",)) == everything
    if name != "*":  # a file of the pattern's own name is that file
        assert list_files(f"{file.parent}/*.jsonl", (".jsonl",)) == everything
    assert not paths.is_pattern(str(file))


def test_brackets_of_what_does_not_exist_are_a_pattern(tmp_path):
    for name in ("a1.jsonl", "a2.jsonl", "a3.jsonl"):
        (tmp_path / name).write_bytes(LINE)
    assert [name for _, name in list_files(f"{tmp_path}/a[12].jsonl", ())] == ["a1.jsonl", "a2.jsonl"]
    assert paths.is_pattern(f"{tmp_path}/a[12].jsonl")
    with pytest.raises(DataError, match="no files match"):
        list_files(f"{tmp_path}/b[12].jsonl", ())


def test_a_pattern_below_a_folder_with_brackets_reaches_as_deep_as_elsewhere(tmp_path):
    for root in ("plain", "m [1]"):
        for name in ("a/x.json", "b/x.json", "b/c/x.json"):
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / name).write_text("{}")
    local = fsspec.filesystem("file")
    for pattern in ("*/*.json", "**/x.json", "*", "b/*/x.json"):
        plain, odd = (
            [
                name.removeprefix(f"{tmp_path}/{root}/")
                for name in paths.glob_below(local, f"{tmp_path}/{root}", pattern)
            ]
            for root in ("plain", "m [1]")
        )
        assert odd == plain
        assert plain


def test_a_file_uri_is_the_local_file(tmp_path):
    file = tmp_path / "a::b.jsonl"
    file.write_bytes(LINE)
    for path in (str(file), f"file://{file}"):
        assert list_files(path, (".jsonl",)) == [(str(file), "a::b.jsonl")]
        with open_source(path) as stream:
            assert stream.read() == LINE
    [unit] = whole_file_units([(str(file), "a::b.jsonl")], {}, lambda path: (path, 20))
    assert unit.inputs[0].digest == str(file), "a local file is identified by its contents"


def test_a_remote_name_that_exists_is_no_pattern():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/odd/data [final].jsonl", LINE)
    assert [name for _, name in list_files("memory://odd/data [final].jsonl", ())] == ["data [final].jsonl"]
    assert [name for _, name in list_files("memory://odd/*.jsonl", ())] == ["data [final].jsonl"]
    memory.rm("/odd", recursive=True)
