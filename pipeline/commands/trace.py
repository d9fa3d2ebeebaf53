"""`trace`: a token of a shard, or a step of a training run, back to documents and the rows of their source files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.errors import UsageError, UserError
from stages.lineage.trace import Decoder, Piece, Span, Trace, find_shard, pieces_in, trace
from train.config import TrainConfig
from train.data.manifest import Manifest
from train.data.sampler import rows_of_step

SHOWN = 240  # characters of a text, unless all of it is asked for


@dataclass(frozen=True)
class Run:
    """A training run, as its run.json tells it: what decides which tokens a step reads."""

    folder: str
    config: TrainConfig
    builds: list[tuple[int, str]]  # (updates made before, build id) of each build of the data that it read

    def build_of(self, step: int) -> str:
        """The build that a step, counted from 1, read."""
        return max((start, build) for start, build in self.builds if start < step)[1]


def open_run(manifest: Manifest, folder: str) -> Run:
    """Read run.json. Raises UserError when it is not there, or the run never read this build."""
    path = Path(folder) / "run.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        seed, batch_size, seq_len, steps = (int(value[k]) for k in ("seed", "batch_size", "seq_len", "steps"))
        history = value.get("builds") or [{"build_id": value["build_id"], "from_step": 0}]
        builds = [(int(b["from_step"]), str(b["build_id"])) for b in history]
    except FileNotFoundError:
        raise UserError(f"--run {folder}: no run.json there; name the folder of a training run") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a run.json of ours ({error})") from None
    if manifest.build_id not in [build for _, build in builds]:
        raise UserError(
            f"{folder} trained on build {', '.join(build[:16] for _, build in builds)}, this manifest is of "
            f"{manifest.build_id[:16]}; name the manifest that run.json names"
        )
    return Run(folder, TrainConfig(seed=seed, batch_size=batch_size, seq_len=seq_len, steps=steps), builds)


def places_of(given: list[str] | None) -> dict[str, str]:
    """`--source NAME=PATH` as a mapping. Raises UsageError."""
    found = {}
    for one in given or []:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise UsageError(f"--source {one}: write --source NAME=PATH")
        found[name] = path
    return found


def spans_of_step(manifest: Manifest, run: Run, step: int) -> list[Span]:
    """The tokens of each row of a step's batch, inputs and targets. Steps count from 1, as metrics.jsonl has them.

    Raises UsageError for a step that the run does not have, UserError for one that read another build.
    """
    if not 1 <= step <= run.config.steps:
        raise UsageError(f"--step {step}: the run has steps 1 to {run.config.steps:,}, as metrics.jsonl counts them")
    if run.build_of(step) != manifest.build_id:
        raise UserError(
            f"--step {step}: it read build {run.build_of(step)[:16]} of the data, this manifest is of "
            f"{manifest.build_id[:16]}; the run went on with another build, see `builds` in its run.json; name that one"
        )
    length = run.config.seq_len + 1
    return [(shard, start, start + length) for shard, start in rows_of_step(manifest, run.config, step - 1)]


def print_token(
    manifest: Manifest, name: str, token: int, places: Mapping[str, str], as_json: bool, full: bool
) -> None:
    """Trace one token of one shard. Raises UserError when it is not there, or when a witness contradicts."""
    shard = find_shard(manifest, name)
    if not 0 <= token < shard.tokens:
        raise UserError(f"--token {token}: {shard.path} has tokens 0 to {shard.tokens - 1:,}")
    (found,) = pieces_in(manifest, [(shard.path, token, token + 1)])
    if not found:
        raise UserError(f"{shard.path}, token {token:,} is padding: it fills a window up and belongs to no document")
    (traced,) = trace(manifest, found, places)
    here = b"".join(Decoder(manifest).pieces(shard.path, token, token + 1))
    if as_json:
        print(json.dumps({"token": token, "token_text": here.decode("utf-8", "replace"), **traced.to_dict()}))
    else:
        console = Console(highlight=False, soft_wrap=True)
        place = f"number {token - traced.piece.token_start:,} of the document's {traced.piece.token_count:,}"
        special = "" if here else ": begins the document"
        shown = repr(here.decode("utf-8", "replace")) if here else ""
        console.print(f"{shard.path}, token {token:,} {shown} ({place}){special}", markup=False)
        describe(console, traced, full)
    check([traced])


def print_step(
    manifest: Manifest, folder: str, step: int, places: Mapping[str, str], as_json: bool, full: bool
) -> None:
    """Trace every document that a training step read. Raises UserError when a witness contradicts."""
    run = open_run(manifest, folder)
    spans = spans_of_step(manifest, run, step)
    rows = pieces_in(manifest, spans)
    flat: list[tuple[int, Piece]] = [(i, piece) for i, found in enumerate(rows) for piece in found]
    unique = list(dict.fromkeys(piece for _, piece in flat))
    traced = dict(zip(unique, trace(manifest, unique, places), strict=True))
    console = Console(highlight=False, soft_wrap=True)
    if not as_json:
        documents = len({(piece.source, piece.document_id) for piece in unique})
        console.print(
            f"step {step} of {folder}: {len(spans)} rows of {run.config.seq_len:,} tokens, {documents} documents, "
            f"seed {run.config.seed} (any number of processes reads the same)",
            markup=False,
        )
    for i, piece in flat:
        shard, start, stop = spans[i]
        span = {"step": step, "row": i, "row_start": start, "row_stop": stop}
        if as_json:
            print(json.dumps({**span, **traced[piece].to_dict()}))
            continue
        inside = min(stop, piece.stop) - max(start, piece.token_start)
        console.print()
        console.print(f"row {i}: {shard} from token {start:,}; {inside:,} tokens are of", markup=False)
        describe(console, traced[piece], full)
    check(list(traced.values()))


def describe(console: Console, traced: Trace, full: bool) -> None:
    """One document, for people."""
    piece, text = traced.piece, traced.text
    if not full and len(text) > SHOWN:
        text = f"{text[:SHOWN]}… ({len(traced.text):,} characters; --full shows all)"
    notes = [f"copy {piece.copy}"] if piece.copy else []
    notes += [f"part {piece.part}"] if piece.part else []
    notes += ["cut, to make the mixture exact"] if piece.truncated else []
    lines: dict[str, Any] = {
        "document": f"{piece.document_id.hex()}, tokens {piece.token_start:,} to {piece.stop - 1:,} of {piece.shard}",
        "source": f"{piece.source}: {piece.source_file} row {piece.source_row:,}" + (f"  {piece.url or ''}".rstrip()),
        "note": ", ".join(notes),
        "text": text if full else repr(text),
        "curated": f"{traced.curated.status}: {traced.curated.detail}",
        "origin": f"{traced.origin.status}: {traced.origin.detail}",
    }
    for name, value in lines.items():
        if value:
            console.print(f"  {name:9} {value}", markup=False)


def check(traced: list[Trace]) -> None:
    """Raises UserError when the tokens are not what the rows table says."""
    wrong = [t for t in traced if not t.proven]
    if wrong:
        first = wrong[0].piece
        raise UserError(
            f"{len(wrong)} of {len(traced)} documents are not what they are said to be, first "
            f"{first.document_id.hex()} ({first.source}: {first.source_file} row {first.source_row}); "
            "see `verify`, and whether the source's files have changed"
        )
