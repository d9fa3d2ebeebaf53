"""`trace`: a token of a shard, or a step of a training run, back to documents and the rows of their source files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.commands.report import TextConsole
from pipeline.errors import UsageError, UserError
from stages.lineage.rows import Decoder, Span, find_shard, rows_of_spans
from stages.lineage.trace import Trace, trace
from stages.paths import is_remote
from train.bucket import Bucket
from train.config import TrainConfig
from train.data.manifest import Manifest
from train.data.sampler import stretches_of_step
from train.sealed import parse_sealed, read_run_file

SHOWN = 240  # characters of a text, unless all of it is asked for


@dataclass(frozen=True)
class Run:
    """A training run, as its run.json tells it: what decides which tokens a step reads."""

    folder: str
    config: TrainConfig
    builds: list[tuple[int, str]]  # (updates made before, build id) of each build of the data that it read

    def build_of(self, step: int) -> str:
        """Return the build that a step, counted from 1, read."""
        return max((start, build) for start, build in self.builds if start < step)[1]


def open_run(manifest: Manifest, folder: str) -> Run:
    """Read run.json. Raises UserError when it is not there, or the run never read this build."""
    path = f"{folder.rstrip('/')}/run.json"
    try:
        value = read_remote_run(folder) if is_remote(folder) else read_run_file(Path(path))
        seed, batch_size, seq_len, steps = (int(value[key]) for key in ("seed", "batch_size", "seq_len", "steps"))
        order = value.get("train", {}).get("order", "shuffled")
        history = value.get("builds") or [{"build_id": value["build_id"], "from_step": 0}]
        builds = [(int(build["from_step"]), str(build["build_id"])) for build in history]
        config = TrainConfig(seed=seed, batch_size=batch_size, seq_len=seq_len, steps=steps, order=order)
    except FileNotFoundError:
        raise UserError(f"--run {folder}: no run.json there; name the folder of a training run") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a run.json of ours ({error})") from None
    if manifest.build_id not in [build for _, build in builds]:
        raise UserError(
            f"{folder} trained on build {', '.join(build[:16] for _, build in builds)}, this manifest is of "
            f"{manifest.build_id[:16]}; name the manifest that run.json names"
        )
    return Run(folder, config, builds)


def read_remote_run(address: str) -> dict[str, Any]:
    """Return what run.json of a run in a bucket says. Raises FileNotFoundError and ValueError."""
    from train.checkpoint.fetched_run import resolve  # it needs torch

    bucket = Bucket(address)
    return parse_sealed(bucket.get(f"{resolve(bucket, address, '')[0]}/run.json"))


def parse_source_paths(options: list[str] | None) -> dict[str, str]:
    """Return `--source NAME=PATH`, given any number of times, as a mapping. Raises UsageError."""
    paths = {}
    for option in options or []:
        name, equals, path = option.partition("=")
        if not (name and equals and path):
            raise UsageError(f"--source {option}: write --source NAME=PATH")
        paths[name] = path
    return paths


def spans_of_step(manifest: Manifest, run: Run, step: int) -> list[tuple[int, Span]]:
    """Return the tokens of each row of a step's batch, inputs and targets, with the row's number.

    Steps count from 1, as in metrics.jsonl. Raises UsageError for a step that the run does not have, UserError for one
    that read another build.
    """
    if not 1 <= step <= run.config.steps:
        raise UsageError(f"--step {step}: the run has steps 1 to {run.config.steps:,}, as metrics.jsonl counts them")
    if run.build_of(step) != manifest.build_id:
        raise UserError(
            f"--step {step}: it read build {run.build_of(step)[:16]} of the data, this manifest is of "
            f"{manifest.build_id[:16]}; the run went on with another build, see `builds` in its run.json; name that one"
        )
    return stretches_of_step(manifest, run.config, step - 1)


def print_token(
    manifest: Manifest, name: str, token: int, source_paths: Mapping[str, str], as_json: bool, full: bool
) -> None:
    """Trace one token of one shard. Raises UserError when it is not there, or when a witness contradicts."""
    shard = find_shard(manifest, name)
    if not 0 <= token < shard.tokens:
        raise UserError(f"--token {token}: {shard.path} has tokens 0 to {shard.tokens - 1:,}")
    (rows,) = rows_of_spans(manifest, [(shard.path, token, token + 1)])
    if not rows:
        raise UserError(f"{shard.path}, token {token:,} is padding: it fills a window up and belongs to no document")
    (traced,) = trace(manifest, rows, source_paths)
    token_text = b"".join(Decoder(manifest).token_bytes(shard.path, token, token + 1)).decode("utf-8", "replace")
    if as_json:
        print(json.dumps({"token": token, "token_text": token_text, **traced.to_dict()}))
    else:
        console = TextConsole()
        place = f"number {token - traced.row.token_start:,} of the document's {traced.row.token_count:,}"
        special = "" if token_text else ": begins the document"
        shown = repr(token_text) if token_text else ""
        console.print(f"{shard.path}, token {token:,} {shown} ({place}){special}")
        print_trace(console, traced, full)
    check_proven([traced])


def print_step(
    manifest: Manifest, folder: str, step: int, source_paths: Mapping[str, str], as_json: bool, full: bool
) -> None:
    """Trace every document that a training step read. Raises UserError when a witness contradicts."""
    run = open_run(manifest, folder)
    spans = spans_of_step(manifest, run, step)
    rows_of_span = rows_of_spans(manifest, [span for _, span in spans])
    read = [(*span, row) for span, rows in zip(spans, rows_of_span, strict=True) for row in rows]
    unique = list(dict.fromkeys(row for *_, row in read))
    traces = dict(zip(unique, trace(manifest, unique, source_paths), strict=True))
    console = TextConsole()
    if not as_json:
        documents = len({(row.source, row.document_id) for row in unique})
        console.print(
            f"step {step} of {folder}: {run.config.batch_size} rows of {run.config.seq_len:,} tokens, "
            f"{documents} documents, seed {run.config.seed} (any number of processes reads the same)"
        )
    for number, (shard, start, stop), row in read:
        if as_json:
            span = {"step": step, "row": number, "row_start": start, "row_stop": stop}
            print(json.dumps({**span, **traces[row].to_dict()}))
            continue
        inside = min(stop, row.stop) - max(start, row.token_start)
        console.print()
        console.print(f"row {number}: {shard} from token {start:,}; {inside:,} tokens are of")
        print_trace(console, traces[row], full)
    check_proven(list(traces.values()))


def print_trace(console: TextConsole, traced: Trace, full: bool) -> None:
    """Print one document, and what its witnesses say."""
    row, text = traced.row, repr(traced.text)
    if full:
        text = traced.text
    elif len(traced.text) > SHOWN:
        text = repr(f"{traced.text[:SHOWN]}… ({len(traced.text):,} characters; --full shows all)")
    notes = [f"copy {row.copy}"] if row.copy else []
    notes += [f"part {row.part}"] if row.part else []
    notes += ["cut, to make the mixture exact"] if row.truncated else []
    lines = {
        "document": f"{row.document_id.hex()}, tokens {row.token_start:,} to {row.stop - 1:,} of {row.shard}",
        "source": f"{row.source}: {row.source_file} row {row.source_row:,}" + (f"  {row.url}" if row.url else ""),
        "note": ", ".join(notes),
        "text": text,
        "curated": f"{traced.curated.status}: {traced.curated.detail}",
        "origin": f"{traced.origin.status}: {traced.origin.detail}",
    }
    for name, value in lines.items():
        if value:
            console.print(f"  {name:9} {value}")


def check_proven(traces: list[Trace]) -> None:
    """Raise UserError when the tokens are not what the rows table says."""
    wrong = [traced for traced in traces if not traced.proven]
    if wrong:
        first = wrong[0].row
        raise UserError(
            f"{len(wrong)} of {len(traces)} documents are not what they are said to be, first "
            f"{first.document_id.hex()} ({first.source}: {first.source_file} row {first.source_row}); "
            "see `verify`, and whether the source's files have changed"
        )
