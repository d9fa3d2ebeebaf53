"""training-content.md: facts for the public summary of training content, Article 53(1)(d) of the EU AI Act.

The sections are those of the European Commission's template (C(2025) 8311, annex), in short words of our own. What the
records do not say is left open, and marked: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.publish import licenses
from pipeline.publish.dataset_card import NOT_STATED, cell, table
from pipeline.publish.facts import Facts, Training, days_of, tokens_read
from stages.sources.presets import PRESETS
from train.data.manifest import Manifest, Source
from train.model.transformer import count_parameters

OPEN = "_left open: the provider states it_"
SIZES = ((10**9, "less than 1 billion tokens"), (10**13, "1 billion to 10 trillion tokens"))


def training_content(facts: Facts, training: Training | None) -> str:
    """Return the page; with a model, of all the phases of its training, and else of the data set alone."""
    manifests = [phase.manifest for phase in training.phases] if training else [facts.manifest]
    return "\n".join(
        (
            "# Training content\n\nFor the public summary that Article 53(1)(d) of Regulation (EU) 2024/1689 asks of "
            f"providers of general-purpose models. All is computed from records; what they do not say is {OPEN}.\n",
            general(manifests, training),
            data_sources(manifests),
            processing(manifests),
        )
    )


def lines(entries: Iterable[tuple[str, object]]) -> str:
    """Return a list, a line an entry."""
    return "".join(f"* {name}: {value}\n" for name, value in entries)


def general(manifests: list[Manifest], training: Training | None) -> str:
    """Return section 1: provider, model, size of the data, its modality."""
    days = [found[1] for found in map(days_of, manifests) if found]
    return "## 1. General information\n\n" + lines(
        (
            ("provider and contact", OPEN),
            *model_lines(training),
            ("date of placement on the Union market", OPEN),
            ("modality", "text, and no other"),
            *((f"size of the data, {cell(m.mixture)}", f"{m.tokens:,} tokens: {size(m.tokens)}") for m in manifests),
            ("latest date of acquisition", max(days) if len(days) == len(manifests) else OPEN),
            ("languages", OPEN),
        )
    )


def size(tokens: int) -> str:
    """Return the template's words for a number of tokens."""
    return next((said for limit, said in SIZES if tokens < limit), "more than 10 trillion tokens")


def model_lines(training: Training | None) -> list[tuple[str, object]]:
    """Return what is known of the model."""
    if training is None:
        return [("model", OPEN), ("models it was made from", OPEN)]
    model = training.model
    origin, parameters = model.provenance(), count_parameters(model.cfg, model.manifest.tokenizer.vocab_size)
    named = f"{cell(origin['name'])}, {cell(origin['phase'])}, step {model.point.step:,}, {parameters:,} parameters"
    read = [f"{tokens_read(phase):,} in {cell(phase.manifest.mixture)}" for phase in training.phases]
    before = f"{cell(training.began_from)}; its training content: {OPEN}" if training.began_from else "none"
    return [
        ("model", f"{named}, checkpoint `{origin['checkpoint_sha256']}`"),
        ("models it was made from", before),
        ("tokens read in training, repeats included", "; ".join(read)),
    ]


def data_sources(manifests: list[Manifest]) -> str:
    """Return section 2: each source under the kind that its address shows; other kinds are left open."""
    sources = {source.name: source for m in manifests for source in m.sources if source.tokens}
    on_hub = [s for s in sources.values() if hub_name_of(s)]
    others = [s for s in sources.values() if not hub_name_of(s)]
    written = {s.name: PRESETS[s.kind].written_by for s in sources.values() if s.kind in PRESETS}
    synthetic = [(cell(name), cell(said)) for name, said in written.items() if said]
    rest = "all other sources" if synthetic else "all sources"
    return (
        "## 2. Sources of the data\n\n### 2.1 Publicly available data sets\n\nData sets of the Hugging Face hub:\n\n"
        f"{source_table(on_hub, manifests)}\n"
        "### 2.2 to 2.4, 2.6 Licensed from others, crawled, of users, other\n\nWhich of these kinds a source is, its "
        f"address does not say: {OPEN}.\n\n{source_table(others, manifests)}\n"
        "### 2.5 Synthetic data\n\nAs the cards of the data sets say:\n\n" + lines([*synthetic, (rest, OPEN)])
    )


def source_table(sources: list[Source], manifests: list[Manifest]) -> str:
    """Return the table of some sources, with the tokens that each gave to each mixture."""
    rows = []
    for source in sources:
        given = [next((s.tokens for s in m.sources if s.name == source.name), 0) for m in manifests]
        noted = ", ".join([source.license or NOT_STATED, *licenses.concerns(source.license)])
        where = hub_name_of(source) or source.origin or NOT_STATED
        rows.append((source.name, where, source.revision or NOT_STATED, noted, *given))
    header = ("name", "where", "revision", "license", *(f"tokens in {cell(m.mixture)}" for m in manifests))
    return table(header, rows) if rows else "None.\n"


def hub_name_of(source: Source) -> str:
    """Return owner/name of the data set of the hub that a source's text comes from, or ""."""
    if source.kind in PRESETS and "hf://" in source.origin:
        return PRESETS[source.kind].repository
    first = source.origin.split(",")[0].strip()
    parts = first.removeprefix("hf://datasets/").split("/")
    return "/".join(parts[:2]).split("@")[0] if first.startswith("hf://datasets/") and len(parts) > 2 else ""


def processing(manifests: list[Manifest]) -> str:
    """Return section 3: what was done about reserved rights and unlawful content, as far as a recipe says it."""
    taken = {name for m in manifests for name, found in (m.recipe.get("exclude") or {}).items() if found}
    read = {s.name: (s.rows_in, sum(s.dropped.values())) for m in manifests for s in m.sources}
    rows_in, dropped = (sum(counts) for counts in zip(*read.values(), strict=True))
    return "## 3. Processing of the data\n\n" + lines(
        (
            ("rights reserved under Article 4(3) of Directive (EU) 2019/790", OPEN),
            ("documents taken down", f"by {', '.join(sorted(taken))}, as the recipe lists them" if taken else "none"),
            ("measures against unlawful content", OPEN),
            ("filtering", f"{dropped:,} of {rows_in:,} documents were dropped by rules and as duplicates"),
        )
    )
