"""The hub for real: huggingface_hub itself against a server on the loopback, whole, busy, broken and changing."""

from __future__ import annotations

import email.utils
import hashlib
import io
import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from commands import cli
from huggingface_hub import HfFileSystem, constants
from loopback_hub import FAULTS, Dataset, Hub
from pydantic import TypeAdapter, ValidationError
from seven import FINEWEB, parquet, seven, web, words
from stage_harness import LocalContext, build, kept_documents, recipe, rows_of, run_unit

from stages.errors import DataError, TransientError
from stages.lineage.reread import read_again
from stages.registry import STAGES
from stages.sources import contents, hub, retries
from stages.sources.presets import PRESETS
from stages.sources.registry import SOURCES, SourceConfig, describe, pin

ADAPTER: TypeAdapter[Any] = TypeAdapter(SourceConfig)
TOKEN = "hf_notatokenbutasecret"
WEB = "hf://datasets/HuggingFaceFW/fineweb-edu"


def no_file(path: str) -> tuple[str, int]:
    raise AssertionError(f"{path} is remote")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """start(datasets, every, ...) -> a hub that this process asks, knowing nothing yet."""
    running = []

    def begin(datasets: dict[str, Dataset], every: int = 0, **options: Any) -> Hub:
        server = Hub(datasets, every, **options)
        running.append(server)
        forget()
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        return server

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.02)
    retries.install()
    yield begin
    for server in running:
        server.__exit__()
    forget()


def forget() -> None:
    """What a new process would not know."""
    hub._commits.clear()
    HfFileSystem.clear_instance_cache()
    retries.SHARED_PAUSE.end = 0.0
    huggingface_hub.close_session()


def units(**keys: Any) -> tuple[Any, list[Any]]:
    config = ADAPTER.validate_python({"from" if k == "kind" else k: v for k, v in keys.items()})
    return config, SOURCES[config.kind].units(config, no_file)


def download(folder: Path, **keys: Any) -> list[dict[str, Any]]:
    """All rows of a source."""
    config, specs = units(**keys)
    work = SOURCES[config.kind].work
    records = [run_unit(folder / str(i), work, s.params, s.inputs) for i, s in enumerate(specs)]
    assert not rows_of(r.output("quarantine") for r in records)
    return rows_of(p for r in records for p in r.named("part-"))


NAMED = [
    ("fineweb_edu", {}, ["000_00000.parquet", "001_00000.parquet", "002_00000.parquet"], "https://example.org/7"),
    ("fineweb_edu", {"subset": "CC-MAIN-2024-10"}, ["train-00000-of-00001.parquet"], "https://example.org/7"),
    ("open_web_math", {}, ["train-00000-of-00114-5c8fc1.parquet"], "https://m.org/7"),
    ("numina_math_cot", {}, ["train-00000-of-00005.parquet"], None),
    ("meta_math_qa", {}, ["MetaMathQA-395K.json"], None),
    ("proof_pile_arxiv", {}, ["arXiv_000.jsonl.zst"], "https://a.org/7"),
    ("cosmopedia", {"subset": "stanford"}, ["train-00000-of-00013.parquet"], None),
    ("cosmopedia", {}, ["stanford/train-00000-of-00013.parquet"], None),
    ("cosmopedia_v2", {}, ["train-00000-of-00104.parquet"], None),
    ("ai2_arc", {}, ["ARC-Challenge/train-00000-of-00001.parquet", "ARC-Easy/train-00000-of-00001.parquet"], None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keys", "files", "url"), NAMED)
def test_each_known_dataset_is_read_in_its_schema(start, tmp_path, name, keys, files, url):
    server = start(seven(), every=4)
    rows = download(tmp_path, kind=name, **keys)
    assert [*dict.fromkeys(r["source_file"] for r in rows)] == files
    seventh = [r for r in rows if r["source_row"] == 7]
    assert len(seventh) == len(files) and all(r["url"] == url for r in seventh)
    assert all(len(r["text"]) > 80 for r in rows)
    asks = {"numina_math_cot", "meta_math_qa"}
    assert all(r["text"].startswith("Question: ") for r in rows) == (name in asks | {"ai2_arc"})
    assert all("\n\nAnswer: " in r["text"] for r in rows) == (name in asks)
    config, specs = units(kind=name, **keys)
    repository = hub.parse_address(specs[0].inputs[0].path)[0]
    said = describe(config)
    assert said["revision"] == server.datasets[repository].revisions["main"]
    assert repository in said["origin"]
    again = list(read_again(config, {files[0]: {7}}))
    assert [r.text for r in again] == [seventh[0]["text"]]


def test_known_datasets_can_be_changed_by_their_keys(tmp_path):
    numina = ADAPTER.validate_python({"from": "numina_math_cot", "path": "/data/*.parquet", "text": "problem"})
    assert (numina.path, numina.template, numina.text) == ("/data/*.parquet", None, "problem")
    again = ADAPTER.validate_python(numina.model_dump(mode="json", by_alias=True))
    assert again == numina
    for name in PRESETS:
        keys = {"path": "/x"} if name == "redpajama_arxiv" else {}
        config = ADAPTER.validate_python({"from": name, **keys})
        assert ADAPTER.validate_python(config.model_dump(mode="json", by_alias=True)) == config
    with pytest.raises(ValidationError, match="no subset 'sample-1BT'; it has sample-10BT"):
        ADAPTER.validate_python({"from": "fineweb_edu", "subset": "sample-1BT"})
    with pytest.raises(ValidationError, match="name its files with `path`"):
        ADAPTER.validate_python({"from": "redpajama_arxiv"})
    with pytest.raises(ValidationError, match="'secret' looks like a secret"):
        ADAPTER.validate_python({"from": "parquet", "path": "s3://b", "storage_options": {"a": [{"secret": "x"}]}})


@pytest.mark.slow
def test_every_third_request_failing_gives_the_same_rows(start, tmp_path):
    small = seven(20)
    start(small)
    want = download(tmp_path / "whole", kind="fineweb_edu") + download(tmp_path / "w2", kind="proof_pile_arxiv")
    for fault in FAULTS:
        server = start(small, every=3, faults=(fault,))  # each range is two requests
        got = download(tmp_path / fault, kind="fineweb_edu") + download(tmp_path / f"{fault}2", kind="proof_pile_arxiv")
        assert got == want
        assert sum(a.fault == fault for a in server.asked) > 5
        assert not any(a.token for a in server.asked if a.cdn), "the token must not leave the hub"
        assert any(a.token for a in server.asked)


def test_a_silent_server_is_a_fault_too(start, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    server = start(seven(), every=9, faults=("slow",))
    assert len(download(tmp_path, kind="cosmopedia", subset="stanford")) == 60
    assert any(a.fault == "slow" for a in server.asked)


def test_retry_after_holds_every_thread_of_the_process_back(start):
    start(seven())
    _, specs = units(kind="fineweb_edu")
    server = start(seven(), every=3, faults=("later",))
    files = [hub.HubFile(s.inputs[0].path, s.inputs[0].digest, s.inputs[0].bytes) for s in specs for _ in range(3)]
    began = time.monotonic()
    threads = [threading.Thread(target=file.read, args=(1000,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [a.when for a in server.asked if a.fault]
    assert time.monotonic() - began > 1
    for moment in told:
        assert not [a for a in server.asked if moment + 0.2 < a.when < moment + 0.95], "asked before the time was up"


def test_how_long_an_answer_asks_to_wait():
    soon = email.utils.formatdate(time.time() + 20, usegmt=True)
    assert retries.retry_after({"retry-after": "7"}) == 7
    assert 15 < (retries.retry_after({"retry-after": soon}) or 0) <= 20
    assert retries.retry_after({"retry-after": email.utils.formatdate(0)}) == 0
    assert retries.retry_after({"ratelimit": '"resolvers";r=0;t=55'}) == 55
    assert retries.retry_after({"ratelimit": '"resolvers";r=9;t=55'}) is None
    assert retries.retry_after({"retry-after": "soon"}) is None and retries.retry_after({}) is None


@pytest.mark.slow
def test_patience_ends_and_says_so(start, monkeypatch):
    start(seven())
    _, (spec,) = units(kind="open_web_math")
    file = hub.HubFile(spec.inputs[0].path, spec.inputs[0].digest, spec.inputs[0].bytes)
    start(seven(), every=1, faults=("503",))
    monkeypatch.setattr(retries, "GIVE_UP_SECONDS", 0.6)
    file.address = file.address.replace(file.address.split("/")[2], constants.ENDPOINT.split("/")[2])
    with pytest.raises(TransientError, match=r"127.0.0.1/datasets/.*parquet: status 503 at try \d, after \d s"):
        file.read(10)
    server = start(seven())
    server.__exit__()
    with pytest.raises(DataError, match="ConnectError at try 4"):
        units(kind="open_web_math")
    assert retries.SHARED_PAUSE.end == 0, "who has nobody to wait for holds others back"


@pytest.mark.parametrize("longer", [False, True])
def test_a_file_that_changed_since_it_was_listed_is_refused(start, tmp_path, longer):
    server = start(seven())
    _, (spec,) = units(kind="open_web_math")
    dataset = server.datasets["open-web-math/open-web-math"]
    ((name, data),) = dataset.files.items()
    dataset.served[name] = data[::-1] + b"x" * longer
    with pytest.raises(DataError, match=r"has changed since it was listed .*run the same command again"):
        run_unit(tmp_path, SOURCES["open_web_math"].work, spec.params, spec.inputs)


def test_what_is_not_there_or_not_allowed_is_one_clear_error(start, tmp_path, monkeypatch):
    datasets = seven()
    datasets["open-web-math/open-web-math"].gated = True
    start(datasets, token="another")
    cases = [
        ({"path": "hf://datasets/nobody/nothing/*.parquet"}, "no such dataset, or one that is not public"),
        ({"path": f"{WEB}@v9/sample/*/*.parquet"}, "no such revision"),
        ({"path": f"{WEB}/sample/10BT", "revision": "v9"}, "@v9: no such revision"),
        ({"path": f"{WEB}/nowhere/*.parquet"}, "no files match"),
        ({"path": f"{WEB}/nowhere.parquet"}, "no files match"),
        ({"path": "hf://owner/model/x.parquet"}, "write hf://datasets/OWNER/NAME"),
        ({"path": "hf://datasets/open-web-math/open-web-math/data/*.parquet"}, "gated .status 403.*into HF_TOKEN"),
    ]
    for keys, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            units(kind="parquet", **keys)
        assert TOKEN not in str(caught.value) and "Signature" not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    monkeypatch.setenv("HF_TOKEN", "another")
    assert len(download(tmp_path, kind="open_web_math")) == 60


@pytest.mark.slow
def test_a_branch_is_read_at_one_commit_and_files_it_leaves_alone_keep_their_units(start, tmp_path):
    datasets = seven()
    server = start(datasets)
    web_edu = datasets["HuggingFaceFW/fineweb-edu"]
    config, before = units(kind="fineweb_edu")
    first = web_edu.revisions["main"]
    web_edu.revisions |= {"main": "b" * 40, "v1": first}
    assert {hub.parse_address(a.path)[1] for s in before for a in s.inputs} == {first}
    assert units(kind="fineweb_edu")[1] == before, "a process keeps to the commit that it found"
    assert describe(config)["revision"] == first
    server.asked.clear()
    forget()
    _, after = units(kind="fineweb_edu")
    assert {hub.parse_address(a.path)[1] for s in after for a in s.inputs} == {"b" * 40}
    assert [a.digest for s in after for a in s.inputs] == [a.digest for s in before for a in s.inputs]
    assert [s.params for s in after] == [s.params for s in before]
    assert units(kind="fineweb_edu", revision="v1")[1] == before
    assert units(kind="parquet", path=f"{WEB}@{first}/sample/10BT/*.parquet")[1] == before
    forget()
    pin(config, first)
    assert units(kind="fineweb_edu")[1] == before, "a manifest's commit is read, wherever main is"


def test_parquet_moves_the_needed_columns_of_the_needed_row_groups(start, tmp_path):
    rng = random.Random(3)
    rows = web(rng, 400, junk=3000)
    for i, row in enumerate(rows):
        row["int_score"] = 2 + (i >= 300)
    data = parquet(FINEWEB, rows, group=100)
    server = start({"HuggingFaceFW/fineweb-edu": Dataset({"sample/10BT/000_00000.parquet": data})})
    footer = pq.ParquetFile(io.BytesIO(data)).metadata
    sizes = {
        footer.row_group(g).column(c).path_in_schema: footer.row_group(g).column(c).total_compressed_size
        for g in range(4)
        for c in range(footer.num_columns)
    }
    needed = 4 * (sizes["text"] + sizes["url"] + sizes["int_score"])
    tail = 64 << 10  # read for the footer, by the driver and by the unit
    got = download(tmp_path / "all", kind="fineweb_edu")
    assert [r["text"] for r in got] == [r["text"] for r in rows]
    assert needed < server.moved() < 1.2 * needed + 2 * tail < len(data) / 2
    server.asked.clear()
    some = download(tmp_path / "some", kind="fineweb_edu", where={"int_score": {"min": 3}})
    assert [r["source_row"] for r in some] == list(range(300, 400))
    assert server.moved() < 1.2 * needed / 4 + 2 * tail, "three of four row groups have no row to keep"


def stream(n: int) -> list[str]:
    """Documents of a kilobyte that hardly compress."""
    rng = random.Random(4)
    return [f"{i:05d} " + words(rng, 10) + rng.randbytes(450).hex() for i in range(n)]


def packed(texts: list[str]) -> bytes:
    """They as a file of JSON lines."""
    return zstandard.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "rules", "kept"),
    [
        ({"max_bytes": "2MB"}, [], None),
        ({"max_documents": 1500}, [], None),
        ({"max_bytes": "2MB"}, [{"length": {"min_chars": 1150}}], 3),  # every third document is long enough
    ],
)
def test_a_stream_is_read_no_further_than_its_budget_needs(start, tmp_path, monkeypatch, budget, rules, kept):
    texts = [t + "." * 300 * (kept is not None and i % kept == 0) for i, t in enumerate(stream(9000))]
    data = packed(texts)
    server = start({"o/n": Dataset({"a.jsonl.zst": data})})
    monkeypatch.setattr(contents, "CHUNK", 256 << 10)
    source = {"from": "jsonl", "path": "hf://datasets/o/n/a.jsonl.zst", "rules": rules}
    context = LocalContext(tmp_path / "b", recipe({"s": {**source, **budget}}))
    got = [r["text"] for r in kept_documents(build(context, "filter").docs["s"])]
    moved = server.moved()
    want = [t for i, t in enumerate(texts) if kept is None or i % kept == 0]
    assert got == want[: len(got)], "the beginning of the stream, each document once"
    limit = {"max_bytes": 2_000_000, "max_documents": 1500}[next(iter(budget))]
    have = len(got) if "max_documents" in budget else sum(len(t) for t in got)
    assert limit <= have < limit + (1200 if "max_documents" in budget else 1.2 * (1 << 20))
    read = texts.index(got[-1]) / len(texts) * len(data)  # up to the last document kept
    slices = sum(stage == "download" for stage, _ in context.ran)
    once = kept is None and "max_bytes" in budget  # else what is kept must be seen before it is known how much to read
    assert slices == (1 if once else 2)
    assert moved < (1.3 if once else 2.3) * read + (1 << 20) and moved < len(data)
    counts = context.counts(STAGES["download"], "s")
    assert counts["rows_in"] == counts["rows_out"] < len(texts), "no row counts twice"


@pytest.mark.slow
def test_the_size_of_slices_does_not_matter(start, tmp_path, monkeypatch):
    data = packed(stream(2500))
    start({"o/n": Dataset({f"{i}.jsonl.zst": data for i in range(2)})})
    source = {"from": "jsonl", "path": "hf://datasets/o/n/*.zst", "max_bytes": "1.5MB"}
    found, ran = [], []
    for growth in (1, 8):
        monkeypatch.setattr("stages.download.stage.MAX_GROWTH", growth)
        context = LocalContext(
            tmp_path / str(growth), recipe({"s": {**source, "rules": [{"length": {"min_chars": 985}}]}})
        )
        found.append([(r["source_file"], r["source_row"]) for r in kept_documents(build(context, "filter").docs["s"])])
        ran.append(context.ran)
    assert found[0] == found[1] and ran[0] != ran[1]


@pytest.mark.slow
def test_any_dataset_is_streamed_through_datasets(start, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    server = start(seven(), every=5)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
    keys = {"kind": "hub_dataset", "dataset": "EleutherAI/proof-pile-2"}
    rows = download(tmp_path, **keys)
    want = download(tmp_path / "plain", kind="proof_pile_arxiv")
    assert [(r["text"], r["url"]) for r in rows] == [(r["text"], r["url"]) for r in want]
    assert {r["source_file"] for r in rows} == {"train-00000-of-00001"}
    config, _ = units(**keys)
    assert describe(config)["revision"] == server.datasets["EleutherAI/proof-pile-2"].revisions["main"]
    assert [r.text for r in read_again(config, {"train-00000-of-00001": {5}})] == [rows[5]["text"]]
    with pytest.raises(DataError, match="no column 'body'; its columns are text, meta"):
        units(**keys, text="body")


RECIPE = {
    "name": "hub",
    "sources": {
        "web": {"from": "fineweb_edu", "rules": [{"metadata": {"int_score": {"min": 3}}}]},
        "owm": {"from": "open_web_math"},
        "numina": {"from": "numina_math_cot"},
        "metamath": {"from": "meta_math_qa"},
        "arxiv": {"from": "proof_pile_arxiv", "max_bytes": "1MB"},
        "cosmopedia": {"from": "cosmopedia", "subset": "stanford"},
        "arc": {"from": "ai2_arc"},
    },
    "evals": {"arc_easy": {"from": "ai2_arc", "path": "hf://datasets/allenai/ai2_arc/ARC-Easy/validation-*.parquet"}},
    "tokenizer": {"vocab_size": 500, "sample": "100kB"},
    "shard_tokens": "20k",
    "mixtures": {
        "anneal": {"tokens": "30k", "ratios": {"web": 0.5, "owm": 0.2, "arxiv": 0.2, "arc": 0.1}, "max_epochs": 3}
    },
}


def run(folder: Path, server: Hub, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with the hub and a token."""
    environment = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN, **more}
    return cli(*arguments, "--out", str(folder / "out"), cwd=folder, **environment)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of what each curated table holds."""
    tables = sorted((folder / "out" / "hub" / "curated").glob("*.parquet"))
    return {f.name: hashlib.sha256(repr(pq.read_table(f).to_pylist()).encode()).hexdigest() for f in tables}


@pytest.mark.soak
def test_processes_and_ray_build_the_same_with_every_third_request_failing(tmp_path):
    results = []
    for executor, every, stage in (("local", 3, "pack_anneal_mix"), ("ray", 0, "exclude")):
        folder = tmp_path / executor
        folder.mkdir()
        (folder / "hub.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
        with Hub(seven(), every) as server:
            done = run(folder, server, "run", stage, "--recipe", "hub.yaml", "--executor", executor, "--workers", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        assert {a.fault for a in server.asked} == ({"", *FAULTS} if every else {""})
        assert not any(a.token for a in server.asked if a.cdn)
        for file in (f for f in folder.rglob("*") if f.is_file()):
            assert TOKEN.encode() not in file.read_bytes(), file
        assert TOKEN not in done.stdout + done.stderr
        results.append(hashes(folder))
    assert results[0] == results[1] and len(results[0]) == 7
    manifest = json.loads((tmp_path / "local/out/hub/anneal/manifest.json").read_text())
    revisions = {one["name"]: one["revision"] for one in (*manifest["sources"], *manifest["evals"])}
    assert revisions["owm"] == seven()["open-web-math/open-web-math"].revisions["main"]
    assert revisions["arc_easy"] == revisions["arc"] == seven()["allenai/ai2_arc"].revisions["main"]


@pytest.mark.slow
def test_the_recipe_of_100m_tokens_is_planned_from_the_hub(tmp_path):
    with Hub(seven(200), every=7) as server:
        done = run(tmp_path, server, "plan", "train", "--recipe", "fineweb_edu_100m", COLUMNS="200")
    assert done.returncode == 1 and "fineweb_edu_100m cannot be run as it is" in done.stderr
    assert "cannot be listed" not in done.stdout
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("fineweb_edu  "))
    assert (
        row[:2] == ["fineweb_edu", "fineweb_edu"] and 1500 < float(row[4].strip("~k ").replace(",", "")) * 1000 < 2100
    )
    assert "would not fit, by the estimate" in done.stderr  # 1,800 documents are no 100 M tokens
    assert 10e6 < int(done.stdout.split("Model: ")[1].split()[0].replace(",", "")) < 15e6
    assert list(tmp_path.iterdir()) == []
