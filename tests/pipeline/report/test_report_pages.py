"""The pages of a build whose documents are hostile: safe, whole, the same again, and right in a browser."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from built import build, texts
from commands import cli
from hostile_build import HOSTILE, RIGHT_TO_LEFT, hostile_build

from pipeline.report.markup import UNSEEN
from stages.schemas import document_id
from train.data.manifest import load_manifest

PAGES = ("index", "sources", "filter", "overlap", "tokenizer", "mixture", "run")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
OPTIONS += ("--disable-component-update", "--disable-sync", "--disable-extensions", "--enable-logging=stderr")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The recipe's file, the folder of results, and what the command printed."""
    recipe, out = hostile_build(tmp_path_factory.mktemp("hostile"))
    done = cli("report", "--recipe", str(recipe), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return recipe, out, done


@pytest.fixture(scope="module")
def folder(built) -> Path:
    return built[1] / "hostile" / "report"


class Page(html.parser.HTMLParser):
    """The elements of a page, its ids, and its text outside of scripts."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.data, self.inside = "", "", ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        self.text += " " if tag in ("td", "th") else ""

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.data += data
        else:
            self.text += data


def test_the_command_says_where_the_pages_are_and_how_large(built, folder):
    _, _, done = built
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert done.stdout.startswith(f"{folder / 'index.html'}: {size / 1e6:.2f} MB of pages about 480 documents, in ")
    assert {path.name for path in folder.iterdir()} == {*(f"{name}.html" for name in PAGES), "report.css", "report.js"}
    assert "reading documents of odd, source 1 of 2" in done.stderr


@pytest.mark.parametrize("name", PAGES)
def test_no_text_of_a_document_becomes_an_element_or_is_unseen(folder, name):
    page = Page(folder / f"{name}.html")
    tags = [tag for tag, _ in page.elements]
    assert tags.count("html") == tags.count("body") == tags.count("main") == tags.count("h1") == 1
    assert not {"img", "iframe", "object", "style", "b>"} & set(tags)
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")], (tag, attributes)
        if tag == "script":
            assert attributes.get("src") == "report.js" or attributes.get("type") == "application/json"
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == POLICY
    raw = (folder / f"{name}.html").read_text()
    assert not UNSEEN.search(raw)
    if page.data:
        assert "<" not in page.data


def test_hostile_texts_are_shown_as_they_are(folder):
    seen = "".join(Page(folder / f"{name}.html").text for name in PAGES)
    assert "</div></main></body></html><script>alert(1)</script><img src=x onerror=alert(2)>" in seen
    assert "{{ 7 * 7 }}{% include 'x' %}<!-- ]]> ␛[31mred␛]0;title␇⟨9B⟩2J ⟨RLO⟩gnp.exe⟨PDF⟩ ⟨LRI⟩⟨RLM⟩⟨ALM⟩ " in seen
    assert "⟨E0041⟩⟨E0042⟩ ⟨2028⟩line ⟨FEFF⟩" in seen
    assert RIGHT_TO_LEFT in seen and "a <b>&\"'⟨RLO⟩.jsonl row" in seen
    for page, what in (
        ("filter", "gopher_alphabetic, odd"),
        ("filter", "gopher_long_doc, odd"),
        ("filter", "9,998,800 characters more"),
        ("overlap", "1 was found in 1 document (1 of odd); dropped: 1"),
        ("sources", "Documents of four lengths"),
        ("mixture", "anneal holds 20.0 k tokens"),
        ("run", "anneal made 44 steps and went from"),
        ("run", "Loss, nats a token; the axis does not begin at 0"),
    ):
        assert what in re.sub(r"\s+", " ", Page(folder / f"{page}.html").text), (page, what)


def test_every_link_leads_to_something_in_the_folder(folder):
    pages = {path.name: Page(path) for path in folder.glob("*.html")}
    ids = {name: [a["id"] for _, a in page.elements if a.get("id")] for name, page in pages.items()}
    assert all(len(each) == len(set(each)) for each in ids.values())
    reached = set()
    for name, page in pages.items():
        for tag, attributes in page.elements:
            for link in (attributes.get("href"), attributes.get("src")):
                if link is None or link == "data:,":
                    continue
                file, _, place = link.partition("#")
                assert (folder / (file or name)).is_file(), link
                reached.add(file)
                if place and "=" not in place:
                    assert place in ids[file or name], (name, tag, link)
    assert set(pages) <= reached


def test_the_same_build_gives_the_same_bytes_from_another_folder_and_names_none(built, folder, tmp_path):
    recipe, out, _ = built
    shutil.copytree(out, tmp_path / "copy", symlinks=True)
    done = cli("report", "--recipe", str(recipe), "--out", str(tmp_path / "copy"), "--to", str(tmp_path / "pages"))
    assert done.returncode == 0, done.stderr
    again = {path.name: path.read_bytes() for path in (tmp_path / "pages").iterdir()}
    assert again == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert not [name for name, content in again.items() if str(out.parent).encode() in content]


def test_figures_are_those_of_the_manifest(built, folder):
    manifest = load_manifest(built[1] / "hostile" / "anneal")
    text = re.sub(r"\s+", " ", Page(folder / "sources.html").text)
    for source in manifest.sources:
        assert f"{source.name} {source.rows_in:,} {source.rows_kept:,} " in text
    dropped = re.sub(r"\s+", " ", Page(folder / "filter.html").text)
    for reason, n in manifest.sources[0].dropped.items():
        if reason.startswith("gopher"):
            assert f"{reason}, odd {n:,} document" in dropped


def test_an_odd_step_leads_to_the_documents_of_its_batch(built, folder):
    out = built[1]
    events = [json.loads(line) for line in (out / "hostile/train/anneal/events.jsonl").read_text().splitlines()]
    odd = [event for event in events if "batch" in event]
    page = Page(folder / "run.html")
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert odd and f"event-anneal-{odd[0]['step']}" in [a.get("id") for _, a in page.elements]
    assert f"#event-anneal-{odd[0]['step']}" in links  # the pin on the curve
    shards = [shard.path for shard in load_manifest(out / "hostile" / "anneal").shards]
    for row in odd[0]["batch"]:
        assert f"mixture.html#token=anneal{shards.index(row['shard'])}:{row['token']}" in links
    assert f"{len(odd)} step" in Page(folder / "run.html").text
    command = f"--run build/hostile/train/anneal --step {odd[0]['step']}"
    assert command in page.text


def test_of_a_part_of_the_documents_it_says_so(built, tmp_path):
    recipe, out, _ = built
    to = str(tmp_path / "pages")
    done = cli("report", "--recipe", str(recipe), "--out", str(out), "--to", to, "--documents", "150")
    assert done.returncode == 0 and re.search(r"about 480 documents, (1[0-9]\d) of them read", done.stdout), done
    assert "drawn by a hash of their ids" in Page(tmp_path / "pages" / "index.html").text
    assert "Sampled: " in Page(tmp_path / "pages" / "sources.html").text


def test_what_cannot_be_is_refused_in_a_line(built, tmp_path):
    recipe, out, _ = built
    given = ("report", "--recipe", str(recipe), "--out", str(out))
    small = cli(*given, "--to", str(tmp_path / "pages"), "--max-size", "10kB")
    assert small.returncode == 1 and "more than --max-size allows, 0.0 MB" in small.stderr
    assert not (tmp_path / "pages").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    foreign = cli(*given, "--to", str(tmp_path / "mine"))
    assert foreign.returncode == 1 and "holds something else than a report" in foreign.stderr
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    empty = cli(*given[:3], "--out", str(tmp_path / "none"))
    assert empty.returncode == 1 and "hostile: nothing is built in" in empty.stderr and "run train" in empty.stderr
    changed = yaml.safe_load(recipe.read_text())
    changed["sources"]["odd"]["rules"] = [{"gopher_quality": {"min_words": 1000}}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
    other = cli("report", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(out))
    assert other.returncode == 1 and "rules of odd are not those of the last build" in other.stderr


def test_a_document_that_was_taken_down_is_in_no_page_nor_is_a_copy(tmp_path):
    secret = "the secretword of and " + " ".join(texts(5, 3))
    written = {"web": [*texts(1, 60), secret, secret.upper()], "maths": [*texts(2, 60), secret]}
    for name, lines in written.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    sources = {name: {"from": "jsonl", "path": str(tmp_path / f"{name}.jsonl")} for name in written}
    recipe = {
        "name": "down",
        "sources": {**sources, "web": {**sources["web"], "rules": [{"length": {"min_chars": 90}}]}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = ("report", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "build"))
    seen = []
    for exclude in ({}, {"ids": [document_id(secret).hex()]}):
        whole = {**recipe, "exclude": exclude}
        build(tmp_path, whole, "exclude").save_state()  # and no further: pages of a build without tokens
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole))
        done = cli(*given)
        assert done.returncode == 0, done.stderr
        pages = (tmp_path / "build" / "down" / "report").glob("*.html")
        seen.append([path.name for path in pages if "secretword" in path.read_text().lower()])
    assert seen[0] and seen[1] == []
    mixture = Page(tmp_path / "build" / "down" / "report" / "mixture.html")
    assert "python -m pipeline run pack_pretrain --recipe recipe.yaml" in mixture.text


# ---------------------------------------------------------------------------------------------------------------------
# In a browser


def browse(folder: Path, page: str, profile: Path) -> tuple[str, list[str]]:
    """Open a page from the disk. Returns its elements as they are then, and its console's lines.

    What the policy forbids, a request that leaves the folder among it, is a line of the console.
    """
    options = (*OPTIONS, f"--user-data-dir={profile}", "--virtual-time-budget=3000")
    command = [str(CHROMIUM), *options, "--dump-dom", f"file://{folder}/{page}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: apt install chromium")
def test_a_browser_finds_no_fault_and_looks_a_token_up(built, folder, tmp_path):
    shard = load_manifest(built[1] / "hostile" / "anneal").shards[0]
    for name in PAGES:
        elements, console = browse(folder, f"{name}.html", tmp_path / name)
        assert console == []
        assert '<html lang="en" class="js">' in elements
    elements, console = browse(folder, "mixture.html#token=anneal0:1234", tmp_path / "token")
    assert console == []
    forbidden = tmp_path / "forbidden"
    shutil.copytree(folder, forbidden)
    page = (forbidden / "index.html").read_text()
    (forbidden / "index.html").write_text(page.replace("<main", "<img src='http://127.0.0.1:9/'><main"))
    _, refused = browse(forbidden, "index.html", tmp_path / "refused")
    assert len(refused) == 1 and "Content Security Policy" in refused[0]  # so an empty console says something
    (answer,) = re.findall(r'<div id="answer".*?</div>', elements, re.DOTALL)
    traced = cli("trace", str(built[1] / "hostile" / "anneal"), "--shard", "0", "--token", "1234", "--json")
    said = json.loads(traced.stdout)
    assert said["document_id"] in answer and f"{said['source']}: " in answer and shard.path in answer
    assert f"number {1234 - said['token_start']:,} of the document's {said['token_count']:,}" in answer
    assert HOSTILE[:20] not in answer
