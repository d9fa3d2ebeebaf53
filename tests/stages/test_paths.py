"""Local or remote, a name or a pattern: one answer everywhere."""

import os
import socket
from pathlib import Path

import fsspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.engine.store import open_store
from pipeline.errors import UserError
from pipeline.recipe import load_recipe, parse_recipe
from stages import paths
from stages.errors import DataError, TransientError
from stages.lineage.inputs import check_protocols
from stages.paths import is_named_protocol
from stages.sources.files import NOTES, list_files, open_source, whole_file_units
from train.redact import HIDDEN, without_secrets

LINE = b'{"text": "A text."}\n'


@pytest.mark.parametrize(
    "path", ["s3://bucket/a", "hf://datasets/o/n", "memory://a", "https://x/y", "zip://a::s3://b/c"]
)
def test_a_path_with_a_scheme_is_remote(path):
    assert paths.is_remote(path)


@pytest.mark.parametrize("path", ["a", "/a", "a::b.jsonl", "c:/x", "file:///a", "file:///a::b", "local:///a", "s3:/a"])
def test_without_a_scheme_or_with_file_a_path_is_local(path):
    assert not paths.is_remote(path)
    assert "://" not in paths.local_path(path)


def test_a_local_path_is_absolute_and_a_chain_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.file_system("exp::a")[1] == str(tmp_path / "exp::a")
    assert paths.file_system("file:///x/y/")[1] == "/x/y"
    assert paths.file_system("~/x")[1] == str(Path.home() / "x")
    assert paths.file_system("~nobody.jsonl")[1] == str(tmp_path / "~nobody.jsonl")
    with pytest.raises(UserError, match="--out is empty"):
        open_store("")


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


def test_brackets_of_what_does_not_exist_are_a_pattern(tmp_path):
    for name in ("a1.jsonl", "a2.jsonl", "a3.jsonl"):
        (tmp_path / name).write_bytes(LINE)
    assert [name for _, name in list_files(f"{tmp_path}/a[12].jsonl", ())] == ["a1.jsonl", "a2.jsonl"]
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


NOT_UTF8 = os.fsdecode(b"caf\xe9")


def listed(path, suffixes=(".jsonl",)):
    """Return the names of a listing, and what it says of what it left out."""
    notes: list[str] = []
    token = NOTES.set(notes)
    try:
        return [name for _, name in list_files(path, suffixes)], notes
    finally:
        NOTES.reset(token)


def test_a_name_that_is_no_utf8_is_read_and_written_escaped(tmp_path):
    file = tmp_path / NOT_UTF8 / f"{NOT_UTF8}.jsonl"
    file.parent.mkdir()
    file.write_bytes(LINE)
    files = list_files(str(tmp_path), (".jsonl",))
    assert files == [(str(file), "caf\\xe9/caf\\xe9.jsonl")]
    assert list_files(str(tmp_path / "*/*.jsonl"), ()) == files
    [unit] = whole_file_units(files, {}, lambda path: (path, 20))
    assert unit.order
    with open_source(unit.inputs[0]) as stream:
        assert stream.read() == LINE
    with pytest.raises(DataError, match=r"no files match .*/caf\\xe9/none") as raised:
        list_files(str(file.parent / "none"), ())
    str(raised.value).encode()
    file.write_bytes(bytes(2 << 20))  # a size from which a store remembers the digest
    assert open_store(str(tmp_path / "out")).identify(str(file))[1] == 2 << 20
    with pytest.raises(UserError, match=r"--out .*/caf\\xe9: the name is no UTF-8"):
        open_store(str(tmp_path / NOT_UTF8))


@given(st.text(st.characters(), max_size=6))
def test_an_escaped_name_can_be_written_and_any_other_stays(name):
    paths.escaped(name).encode()
    assert (paths.escaped(name) == name) == paths.is_utf8(name)


@pytest.mark.parametrize(
    "second", ["*.jsonl", "a.jsonl", "link.jsonl", "../link/*", "../link", "../[dl]*/a.jsonl", "../h"]
)
def test_one_file_named_twice_is_read_once(tmp_path, second):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(LINE)
    (folder / "link.jsonl").symlink_to("a.jsonl")
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "h").hardlink_to(folder / "a.jsonl")
    names, _ = listed([str(folder), f"{folder}/{second}"])
    assert names == ["a.jsonl"]
    names, notes = listed(str(folder))
    assert notes == ["link.jsonl: read once, though `path` or a link leads to the same file again"]


@pytest.mark.parametrize("kind", ["fifo", "socket", "link", "device"])
@pytest.mark.parametrize("how", ["file", "folder", "glob"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind, how, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.jsonl"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("a.jsonl")
    else:
        file.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    path = {"file": str(file), "folder": str(tmp_path), "glob": str(tmp_path / "*.jsonl")}[how]
    said = {"fifo": "is a FIFO", "socket": "is a socket", "link": "is not there; mend it", "device": "device|link out"}
    with pytest.raises(DataError, match=said[kind]):
        list_files(path, (".jsonl",))


@pytest.mark.parametrize("path", ["/proc/kmsg", "/proc/cpuinfo"])
def test_what_the_kernel_makes_up_is_refused(path):
    if not Path(path).exists():
        pytest.skip(f"this machine has no {path}")
    with pytest.raises(DataError, match="made up by the kernel"):
        list_files(path, (".jsonl",))


def test_a_folder_says_what_it_left_out(tmp_path):
    for name in ("a.jsonl", "b.JSONL", "c.csv", "d.csv", "README", ".hidden"):
        (tmp_path / name).write_bytes(LINE)
    names, [note] = listed(str(tmp_path))
    assert names == ["a.jsonl", "b.JSONL"]
    assert note.startswith(f"{tmp_path}: 3 files of other endings (2 .csv, 1 without one) left out;")
    with pytest.raises(DataError, match=r"looked for \.parquet.*5 files of other endings .*`from: csv` reads \.csv"):
        list_files(str(tmp_path), (".parquet",))


def test_an_error_says_where_a_relative_path_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"no files match sub/x \\(that is {tmp_path}/sub/x\\)"):
        list_files("sub/x", ())


def test_links_to_folders_are_not_entered_and_are_counted(tmp_path):
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/a.jsonl").write_bytes(LINE)
    (tmp_path / "data/loop").symlink_to(".")
    names, [note] = listed(str(tmp_path / "data"))
    assert names == ["sub/a.jsonl"]
    assert "1 file of other endings (1 links to folders) left out" in note
    (tmp_path / "data/b.jsonl").symlink_to("sub")
    with pytest.raises(DataError, match=r"b\.jsonl is a link to a folder; name that folder"):
        listed(str(tmp_path / "data"))


def test_a_folder_that_cannot_be_listed_is_named_and_not_left_out(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_bytes(LINE)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/sub cannot be listed \(Permission denied\)"):
        list_files(str(tmp_path), (".jsonl",))


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/data/a.jsonl", True),
        ("a::b.jsonl", True),
        ("file:///data/a", True),
        ("s3://bucket/a", True),
        ("hf://datasets/o/n", True),
        ("https://a.test/x", True),
        ("reference://x", False),
        ("github://o:r@main/x", False),
        ("simplecache::s3://bucket/a", False),
        ("zip://a::https://a.test/x.zip", False),
        ("https://a.test/x::reference://y", False),
        ("memory://x", False),
        ("ssh://host/x", False),
    ],
)
def test_a_strangers_manifest_opens_named_protocols_alone(path, allowed):
    assert is_named_protocol(path) == allowed
    if allowed:
        check_protocols("a", {"path": ["b.jsonl", path]})
    else:
        with pytest.raises(DataError, match="say where they are: --source a=PATH"):
            check_protocols("a", {"path": ["b.jsonl", path]})


@pytest.mark.parametrize("path", ["", [], ["a.jsonl", ""]])
@pytest.mark.parametrize("group", ["sources", "evals"])
def test_no_path_is_not_the_folder_that_one_stands_in(path, group):
    recipe = {"name": "a", "sources": {"one": {"from": "jsonl", "path": "a.jsonl"}}}
    recipe.setdefault(group, {})["two"] = {"from": "jsonl", "path": path}
    with pytest.raises(UserError, match=rf"r\.yaml: {group}\.two\.path.*: must have 1 or more"):
        parse_recipe(recipe, "r.yaml")


SECRET = "hunter2"
HELD = [  # addresses with a secret
    f"https://ann:{SECRET}@a.test/x.jsonl",
    f"https://ann:{SECRET}/&b@a.test/x.jsonl",
    f"HTTPS://{SECRET}@a.test/x.jsonl",
    f"https://ann%3A{SECRET}@a.test/x.jsonl",
    f"s3://ann:{SECRET}@bucket/x",
    f"simplecache::https://ann:{SECRET}@a.test/x",
    f"https://a.test/x?X-Amz-Signature={SECRET}&X-Amz-Date=1",
    f"https://a.test/x?sv=1&sig={SECRET}",
    f"https://a.test/x?access_token={SECRET}",
    f"https://a.test/x?access%5Ftoken={SECRET}",
    f"https://a.test/x?a=1;api_key={SECRET}",
    f"https://a.test/x#id_token={SECRET}",
    f"https://a.test/x?jwt={SECRET}",
    f"hf://datasets/ann:{SECRET}@owner/name",
]
PLACES = {
    "path": lambda one, recipe, address: one.update(path=address),
    "list": lambda one, recipe, address: one.update(path=["x.jsonl", address]),
    "no path": lambda one, recipe, address: one.update(path={"a": [address]}),
    "no source": lambda one, recipe, address: recipe.update(sources={"one": address}),
    "name": lambda one, recipe, address: recipe.update(sources={address: one}),
    "kind": lambda one, recipe, address: one.update({"from": address}),
    "unknown key": lambda one, recipe, address: one.update(pth=address),
    "origin": lambda one, recipe, address: one.update(origin=address),
    "options": lambda one, recipe, address: one.update(storage_options={"client_kwargs": {"proxy": address}}),
    "evals": lambda one, recipe, address: recipe.update(evals={"set": {"from": "jsonl", "path": address}}),
    "against": lambda one, recipe, address: recipe.update(
        decontaminate={"against": {"set": {"from": "jsonl", "path": address}}}
    ),
    "tokenizer": lambda one, recipe, address: recipe.update(tokenizer={"from": address}),
    "train": lambda one, recipe, address: recipe.update(train={"pretrain": {"init_from": address}}),
}


@pytest.mark.parametrize("address", HELD)
@pytest.mark.parametrize("place", PLACES)
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(address, place, tmp_path):
    source = {"from": "jsonl", "path": "x.jsonl"}
    recipe = {"name": "a", "sources": {"one": source}}
    PLACES[place](source, recipe, address)
    file = tmp_path / "r.yaml"
    for text in (yaml.safe_dump(recipe), yaml.safe_dump(recipe) + "\n: [}", f"a: {{b: {address}, c: [}}}}"):
        file.write_text(text)
        with pytest.raises(UserError) as error:
            load_recipe(str(file))
        assert SECRET not in str(error.value)
    with pytest.raises(UserError, match="holds a secret"):
        parse_recipe(recipe, "r.yaml")


@pytest.mark.parametrize("address", HELD)
@pytest.mark.parametrize(
    "command",
    [
        *("verify {}", "inspect {}", "trace {} --shard 0 --token 0", "find {} --text a", "rebuild {}", "adopt {}"),
        *("diff x {}", "run filter --recipe {}", "run filter --out {}", "status --out {}", "clean --out {}"),
    ],
)
def test_a_secret_on_the_command_line_is_not_repeated(address, command, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["shardmill", *command.format(address).split()])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err and "error: " in said.err


@pytest.mark.parametrize("address", HELD)
def test_what_clients_say_is_repeated_without_secrets(address, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + SECRET)
    for error in (DataError(f"403 for url: {address} ({address})"), DataError(f"header Bearer hf_{SECRET} refused")):
        assert SECRET not in str(error) and HIDDEN in str(error)
    path = address[address.index("a.test") :] if "a.test" in address else ""
    assert "@" in address or SECRET not in str(TransientError(f"Max retries exceeded with url: {path}"))


@pytest.mark.parametrize(
    "address",
    [
        *("https://a.test/x?page=3", "s3://bucket/x", "hf://datasets/o/n@main/x", "a?key=b", "https://a.test:80/x@y"),
        *("abfs://container@account.dfs.core.windows.net/x", "memory://a::b", "https://a.test/author=x?by=me&author=y"),
    ],
)
def test_an_address_without_a_secret_is_taken(address):
    parse_recipe({"name": "a", "sources": {"one": {"from": "jsonl", "path": address}}}, "r.yaml")
    assert without_secrets(address) == address or "://" not in address


@pytest.mark.parametrize("name", ["Authorization", "cookie", "sas_token", "password", "aws_secret_access_key"])
def test_a_secret_in_storage_options_is_refused(name):
    source = {"from": "jsonl", "path": "s3://b/x", "storage_options": {"client_kwargs": {"headers": {name: "x"}}}}
    with pytest.raises(UserError, match="looks like a secret"):
        parse_recipe({"name": "a", "sources": {"one": source}}, "r.yaml")
