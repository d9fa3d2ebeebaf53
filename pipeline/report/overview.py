"""The first page: what went in, what was left out, and what of it is worth a look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from pipeline.report.charts import strip
from pipeline.report.facts import Facts
from pipeline.report.flow import Flow, Loss, bands
from pipeline.report.markup import counted, decimal, escape, listed, number, share, short, size
from stages.review.account import Account
from stages.review.sample import Sample

BANDS = 3  # sources with a band each; more are strips
TOP = 12  # strips beside a fold with the others
FINDINGS = 5
# What a finding begins at.
RULE_BYTES, REPEATS, UNEVEN, LONGEST, OFF, NEAR_CAP = 0.02, 0.01, 0.1, 0.2, 0.005, 0.95
LEAK = JUMP = 0.5  # weights of what is not about a share of text
OPEN_LICENSES = ("", "unknown", "none", "other", "?")


class Finding(NamedTuple):
    """A figure that a decision could hang on."""

    weight: float  # share of the text it is about: what is first
    figure: str
    text: Markup
    link: str
    linked: str
    hot: bool = False


def page(facts: Facts) -> dict[str, Any]:
    """Return what the template shows."""
    accounts = list(facts.accounts.values())
    by_documents = [flow_of(each, facts.samples[each.name], False) for each in accounts]
    by_bytes = [flow_of(each, facts.samples[each.name], True) for each in accounts]
    found = sorted(findings(facts), key=lambda finding: (-finding.weight, finding.link))
    return {
        "lead": lead(facts),
        "panes": [pane(by_documents, "documents"), pane(by_bytes, "bytes of text")],
        "flow_basis": flow_basis(facts),
        "findings": found[:FINDINGS],
        "mixtures": mixture_rows(facts),
        "scores": score_rows(facts),
    }


def lead(facts: Facts) -> Markup:
    """Return the answer in sentences."""
    accounts = facts.accounts.values()
    read, kept = facts.documents, sum(each.kept for each in accounts)
    read_bytes, kept_bytes = (sum(getattr(each, name) for each in accounts) for name in ("read_bytes", "kept_bytes"))
    text = Markup("Of <b>{}</b> from {}, <b>{}</b> were kept: {} of the documents and {} of the text.").format(
        counted(read, "document"),
        counted(len(accounts), "source"),
        number(kept),
        share(kept, read),
        share(kept_bytes, read_bytes),
    )
    tokens = sum(each.tokens for each in accounts)
    if tokens:
        text += Markup(" They make <b>{} tokens</b>.").format(short(tokens))
    if facts.manifests:
        drawn = [f"{name} draws {short(manifest.tokens)}" for name, manifest in facts.manifests.items()]
        text += escape(f" Of these the mixture {listed(drawn)}.")
    return text


def flow_of(account: Account, sample: Sample, in_bytes: bool) -> Flow:
    """Return what left a source on its way, in documents or in bytes."""
    shown = size if in_bytes else number
    held_out = sample.held_out & sample.kept
    held = (int(sample.sizes[held_out].sum()) if in_bytes else int(held_out.sum())) / sample.share
    read = account.read_bytes if in_bytes else account.read
    ruled = account.ruled_bytes if in_bytes else account.rule_documents
    later = account.later_bytes if in_bytes else account.later_documents
    left = (account.kept_bytes if in_bytes else account.kept) - held
    losses = [
        Loss("out", f"{shown(ruled)} by rules ({share(ruled, read)})", ruled, commonest(account, sample, in_bytes)),
        Loss("out", f"{shown(later)} {later_name(account)} ({share(later, read)})", later, later_kinds(account)),
        Loss("held", f"{shown(held)} held out ({share(held, read)})", held, "never trained on"),
    ]
    if account.quarantined and not in_bytes:
        losses.insert(0, Loss("out", f"{shown(account.quarantined)} could not be read", account.quarantined, ""))
    unit = "" if in_bytes else " documents"
    tokens = f", {short(account.train_tokens)} tokens" if account.tokens else ""
    return Flow(
        account.name,
        read,
        [loss for loss in losses if loss.amount > 0],
        left,
        f"{shown(read)}{unit} read",
        f"{shown(left)}{unit} to train on{tokens}",
    )


def commonest(account: Account, sample: Sample, in_bytes: bool, most: int = 3) -> str:
    """Return the reasons that took most, each with how much."""
    if in_bytes:
        taken = {reason: sample.bytes_of(reason) for reason in account.ruled_out}
    else:
        taken = {reason: float(n) for reason, n in account.ruled_out.items()}
    shown = size if in_bytes else number
    first = sorted(taken.items(), key=lambda item: (-item[1], item[0]))[:most]
    words: list[str] = []
    for reason, amount in first:
        word = f"{plain_reason(reason)} {shown(amount)}"
        if len(" · ".join([*words, word])) <= 44:
            words.append(word)
    return " · ".join(words)


def plain_reason(reason: str) -> str:
    """Return a reason in words."""
    return reason.removeprefix("gopher_").replace("_", " ")


def later_name(account: Account) -> str:
    """Return what took documents behind the rules, in two words."""
    kinds = {"seen before": sum(account.repeats.values()), "leaks": account.leaks, "taken down": account.excluded}
    kinds["beyond the budget"] = account.beyond_budget
    named = [name for name, n in kinds.items() if n]
    return named[0] if len(named) == 1 else "repeats and others" if named else "later"


def later_kinds(account: Account) -> str:
    """Return what took documents behind the rules, each with how many."""
    kinds = {name.replace("_", "-"): n for name, n in account.repeats.items()}
    kinds |= {"leak": account.leaks, "taken down": account.excluded, "beyond the budget": account.beyond_budget}
    return " · ".join(f"{name} {number(n)}" for name, n in kinds.items() if n)


def pane(flows: list[Flow], unit: str) -> dict[str, Any]:
    """Return one form of the flow: bands of a few sources, strips of many."""
    whole = max((flow.read for flow in flows), default=0)
    ranked = sorted(flows, key=lambda flow: (-flow.read, flow.name))
    rows = [
        {
            "name": flow.name,
            "strip": strip([(flow.left, "stay"), *((loss.amount, loss.kind) for loss in reversed(flow.losses))], whole),
            "read": flow.read_label.removesuffix(" read"),
            "left": flow.left_label,
            "losses": flow.losses,
            "taken": " · ".join(loss.label for loss in flow.losses if loss.kind != "held"),
        }
        for flow in ranked
    ]
    return {
        "unit": unit,
        "bands": bands(flows, unit) if 0 < len(flows) <= BANDS else None,
        "rows": rows[:TOP],
        "others": rows[TOP:],
    }


def flow_basis(facts: Facts) -> str:
    """Return what the flow was counted on."""
    held = "" if facts.whole else f" What is held out is sampled: {number(facts.drawn)} documents drawn by hash."
    return (
        f"Counted: all {number(facts.documents)} documents, from the records of the build.{held} "
        "What is less than a pixel wide is drawn as one."
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is worth a look


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield what exceeds a threshold, in no order."""
    text_bytes = max(1, sum(each.read_bytes for each in facts.accounts.values()))
    yield from rule_findings(facts, text_bytes)
    yield from repeat_findings(facts)
    yield from source_findings(facts)
    yield from mixture_findings(facts)
    events = sum("batch" in event for run in facts.runs for event in run.events)
    if events:
        yield Finding(
            JUMP, number(events), Markup("training steps were out of the ordinary; their batches are kept."),
            "run.html#events", "See what they saw", True,
        )  # fmt: skip
    if not facts.build.items:
        text = Markup("No evaluation set was named to be kept out of training, so no leak was looked for.")
        yield Finding(0.0, "none", text, "overlap.html#leaks", "How to name one")


def rule_findings(facts: Facts, text_bytes: int) -> Iterator[Finding]:
    """Yield the rule that takes most of a source's text, where that is much."""
    for name, sample in facts.samples.items():
        account = facts.accounts[name]
        taken = {reason: sample.bytes_of(reason) / max(1, account.read_bytes) for reason in account.ruled_out}
        if not taken or max(taken.values()) < RULE_BYTES:
            continue
        reason = max(taken, key=lambda each: (taken[each], each))
        median = np.median(sample.chars[sample.dropped_for(reason)])
        text = Markup(
            "of the text of <b>{}</b> goes to one rule, <code>{}</code>: {} with a median of {} characters."
        ).format(name, reason, counted(account.ruled_out[reason], "document"), number(median))
        weight = taken[reason] * account.read_bytes / text_bytes
        yield Finding(weight, share(taken[reason]), text, f"filter.html#{name}-{reason}", "See what it takes", True)


def repeat_findings(facts: Facts) -> Iterator[Finding]:
    """Yield how much of what passed the rules is there twice, and which evaluation sets leak."""
    repeats = sum(sum(each.repeats.values()) for each in facts.accounts.values())
    passed = sum(each.kept + each.later_documents for each in facts.accounts.values())
    if passed and repeats / passed >= REPEATS:
        across = sum(
            n for name, each in facts.accounts.items()
            for kept_in, n in [*each.duplicate_of.items(), *each.near_duplicate_of.items()] if kept_in != name
        )  # fmt: skip
        text = Markup("of the documents that passed the rules are repeats, {} of {} of one in another source.").format(
            number(across), number(repeats)
        )
        yield Finding(repeats / passed, share(repeats, passed), text, "overlap.html", "See the pairs", True)
    leaks = sum(each.leaks for each in facts.accounts.values())
    if leaks:
        text = Markup("documents held a piece of an evaluation set and were dropped.")
        yield Finding(LEAK, number(leaks), text, "overlap.html#leaks", "See where", True)


def source_findings(facts: Facts) -> Iterator[Finding]:
    """Yield sources that the tokenizer serves worse, that a few documents fill, or whose license is not known."""
    kept = max(1, sum(each.kept_bytes for each in facts.accounts.values()))
    rates = {name: each.kept_bytes / each.tokens for name, each in facts.accounts.items() if each.tokens}
    if len(rates) > 1:
        worst, best = min(rates, key=lambda n: (rates[n], n)), max(rates, key=lambda n: (rates[n], n))
        if rates[best] / rates[worst] - 1 >= UNEVEN:
            text = Markup("more tokens for the same bytes of <b>{}</b> than of <b>{}</b>: {} bytes a token against {}.")
            text = text.format(worst, best, decimal(rates[worst], 2), decimal(rates[best], 2))
            weight = facts.accounts[worst].kept_bytes / kept * UNEVEN
            yield Finding(weight, share(rates[best] / rates[worst] - 1), text, "tokenizer.html", "See where it splits")
    for name, sample in facts.samples.items():
        tokens = np.sort(sample.tokens[sample.kept])[::-1]
        if len(tokens) >= 100 and (part := tokens[: len(tokens) // 100].sum() / max(1, tokens.sum())) >= LONGEST:
            text = Markup("of the tokens of <b>{}</b> are in the longest hundredth of its documents.").format(name)
            weight = float(part) * facts.accounts[name].kept_bytes / kept * UNEVEN
            yield Finding(weight, share(float(part)), text, f"sources.html#{name}", "See its lengths")
    unknown = [name for name, origin in facts.origins.items() if origin.license.lower() in OPEN_LICENSES]
    if unknown:
        part = sum(facts.accounts[name].kept_bytes for name in unknown) / kept
        text = Markup("of the text has no known license: {}.").format(listed(unknown))
        yield Finding(part * REPEATS, share(part), text, "sources.html", "See the sources", True)


def mixture_findings(facts: Facts) -> Iterator[Finding]:
    """Yield sources of mixtures that are not what was asked, or repeat nearly as often as they may."""
    for name, manifest in facts.manifests.items():
        for source in manifest.sources:
            off = source.ratio_got - source.ratio_asked
            if abs(off) >= OFF:
                text = Markup("of mixture <b>{}</b> is <b>{}</b>, and {} was asked.").format(
                    name, source.name, share(source.ratio_asked)
                )
                yield Finding(abs(off), share(source.ratio_got), text, "mixture.html", "See the mixture", True)
            elif source.max_epochs > 1 and source.epochs >= NEAR_CAP * source.max_epochs:
                text = Markup("times is <b>{}</b> repeated in mixture <b>{}</b>, as often as it may.").format(
                    source.name, name
                )
                yield Finding(0.05, decimal(source.epochs, 2), text, "mixture.html", "See the mixture")


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def mixture_rows(facts: Facts) -> list[dict[str, Any]]:
    """Return what each mixture drew, a row a source."""
    return [
        {"mixture": name if i == 0 else "", "source": source}
        for name, manifest in facts.manifests.items()
        for i, source in enumerate(manifest.sources)
    ]


def score_rows(facts: Facts) -> list[dict[str, Any]]:
    """Return bits per byte of each run that came to its end, of all and of each source."""
    rows = []
    for run in facts.runs:
        summary = run.summary
        if not all(key in summary for key in ("before", "unigram", "after")):
            continue
        for i, source in enumerate(["", *summary["after"]["sources"]]):
            scores = {
                key: (summary[key]["sources"].get(source, {}) if source else summary[key]).get("bits_per_byte")
                for key in ("before", "unigram", "after")
            }
            rows.append({"phase": run.phase if i == 0 else "", "source": source or "all", **scores})
    return rows
