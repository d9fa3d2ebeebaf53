"""README.md of a published data set: metadata that the hub reads, and what the records say of each source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from pipeline.publish import licenses
from pipeline.publish.facts import Facts
from train.data.manifest import Source
from train.monitor.text import printable

SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
SIZES |= {10**8: "10M<n<100M", 10**9: "100M<n<1B", 10**10: "1B<n<10B", 10**11: "10B<n<100B"}
NOT_STATED = "not stated"


def cell(value: object) -> str:
    """Return a value as text of Markdown on one line: nothing in it is markup, or ends a cell of a table."""
    text = " ".join(printable(str(value)).split())
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return text


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table of Markdown; whole numbers get separators."""
    head = list(header)
    lines = [head, ["---"] * len(head)]
    lines += [[f"{value:,}" if isinstance(value, int) else cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def metadata(facts: Facts) -> dict[str, Any]:
    """Return the YAML in front of the card, by the keys of the hub's data set cards."""
    documents = sum(facts.documents.values())
    names = [name for source in facts.sources for name in licenses.hub_names(source.license)]
    found: dict[str, Any] = {
        "pretty_name": f"{facts.manifest.name}, mixture {facts.manifest.mixture}",
        "license": list(dict.fromkeys(names)),
        "task_categories": ["text-generation"],
        "tags": ["shardmill"],
    }
    if facts.text:
        found["size_categories"] = [next((said for n, said in SIZES.items() if documents < n), "n>1T")]
        everything = {"config_name": "all", "default": True, "data_files": "text/*.parquet"}
        each = [{"config_name": name, "data_files": f"text/{name}-*.parquet"} for name in sorted(facts.documents)]
        found["configs"] = [everything, *each]
    return found


def warnings(sources: Iterable[Source]) -> list[str]:
    """Return a sentence for each license that needs a look before this text is used or handed on."""
    said = []
    for source in sources:
        for concern in licenses.concerns(source.license):
            what = "its license is not known" if concern == "unknown" else f"its license is {concern}: {source.license}"
            said.append(f"{source.name} ({source.tokens:,} tokens): {what}")
    return said


def dataset_card(facts: Facts, repository: str, report: bool) -> str:
    """Return README.md. repository: its name on the hub, or "" where it is not known."""
    manifest, place = facts.manifest, repository or "FOLDER"
    front = yaml.safe_dump(metadata(facts), sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{front}---\n\n# {cell(manifest.name)}, mixture {cell(manifest.mixture)}\n",
        f"{manifest.tokens:,} training tokens of {manifest.documents:,} documents, and {manifest.val_tokens:,} that "
        f"are held out, packed by Shardmill (build `{manifest.build_id[:16]}`). Everything here is computed from the "
        "build's own records.\n",
        contents(facts, place, report),
        composition(facts.sources),
        roll_up(facts.sources),
        left_out(facts.sources),
        how_it_was_made(facts),
    ]
    return "\n".join(sections)


def contents(facts: Facts, place: str, report: bool) -> str:
    """Return the section on what lies where, and how it is loaded."""
    text = (
        f"* `text/`: {sum(facts.documents.values()):,} curated documents, of which the mixture takes a part "
        f"({facts.text_bytes / 1e6:,.1f} MB).\n"
        if facts.text
        else ""
    )
    pages = "* `report/`: pages that open in a browser.\n" if report else ""
    load = (
        f'```python\nfrom datasets import load_dataset\n\ntext = load_dataset("{place}", split="train")\n```\n\n'
        if facts.text
        else ""
    )
    return (
        f"## What is here\n\n{text}* `shards/`: the tokens, each shard with its documents, and `manifest.json`, which "
        f"names all files with their sha256.\n{pages}* `croissant.json`, `training-content.md`: the same facts for "
        f"machines, and for the European Union's summary of training content.\n\n{load}"
        "```sh\npython -m pipeline verify shards\ntorchrun train/main.py --manifest shards/manifest.json\n```\n"
    )


def composition(sources: list[Source]) -> str:
    """Return the section on what the tokens are made of."""
    rows = [
        (s.name, s.origin or NOT_STATED, s.revision or NOT_STATED, s.tokens, f"{s.ratio_got:.1%}", f"{s.epochs:.3g}")
        for s in sources
    ]
    return "## Composition\n\n" + table(("source", "origin", "revision", "tokens", "share", "epochs"), rows)


def roll_up(sources: list[Source]) -> str:
    """Return the section on licenses, as the sources state them, with what needs a look first."""
    looked_at = [f"* **{cell(said)}**\n" for said in warnings(sources)]
    rows = [(s.license or NOT_STATED, s.name, s.tokens, f"{s.ratio_got:.1%}") for s in sources]
    return (
        "## Licenses\n\nRepeated as the sources state them, and not interpreted. A license of the whole is for whoever "
        f"publishes it to state.\n\n{''.join(looked_at)}\n" + table(("license", "source", "tokens", "share"), rows)
    )


def left_out(sources: list[Source]) -> str:
    """Return the section on the documents that were read and not kept, by reason."""
    reasons = sorted({reason for source in sources for reason in source.dropped})
    rows: list[list[object]] = [["read", *(s.rows_in for s in sources)]]
    rows += [[reason, *(s.dropped.get(reason, 0) for s in sources)] for reason in reasons]
    rows.append(["could not be read", *(s.quarantined for s in sources)])
    rows.append(["kept", *(s.rows_kept for s in sources)])
    return "## What was left out\n\nDocuments.\n\n" + table(("", *(cell(s.name) for s in sources)), rows)


def settings(keys: dict[str, Any]) -> str:
    """Return the keys of a recipe that are set, on a line."""
    said = [f"{key} {', '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in keys.items() if v]
    return cell("; ".join(said)) or "none"


def how_it_was_made(facts: Facts) -> str:
    """Return the section on the rules, the tokenizer and the held-out part; the recipe says the rest."""
    manifest, recipe = facts.manifest, facts.manifest.recipe
    rules = {name: keys.get("rules") or [] for name, keys in recipe.get("sources", {}).items()}
    named = {
        name: ", ".join(r if isinstance(r, str) else next(iter(r)) for r in found) for name, found in rules.items()
    }
    lines = [f"* {cell(name)}: {cell(found) or 'no rule'}.\n" for name, found in named.items()]
    days = " to ".join(dict.fromkeys(map(str, facts.fetched))) if facts.fetched else "not known: the records are gone"
    evals = ", ".join(f"{e.name} ({e.items:,} questions)" for e in manifest.evals) or "none"
    against = ", ".join(recipe.get("decontaminate", {}).get("against", {})) or "none"
    return (
        f"## How it was made\n\nThe whole recipe stands in `shards/manifest.json`; with the same sources and versions "
        f"`python -m pipeline rebuild shards` gives the same bytes. Sources were read: {days}.\n\nRules, by source:\n\n"
        f"{''.join(lines)}\n* Deduplication: {cell(recipe.get('dedup') or 'none')}.\n"
        f"* Evaluation sets that were searched for: {cell(against)}; packed beside: {cell(evals)}.\n"
        f"* Held out: {cell(manifest.val_ids.rule)} ({manifest.val_ids.count:,} documents).\n"
        f"* Tokenizer: {manifest.tokenizer.vocab_size:,} ids, sha256 `{manifest.tokenizer.sha256}`.\n"
        "* Languages, and what the text says of people, were not recorded.\n"
    )
