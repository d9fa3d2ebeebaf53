"""`inspect`: what a manifest says, and what any stretch of a shard reads like."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.commands.report import TextConsole, grid
from pipeline.errors import UserError
from stages.lineage.rows import Decoder, rows_of_spans
from stages.pack.describe import mixture_table
from train.data.manifest import Manifest


def print_manifest(manifest: Manifest, shard: int, token: int, length: int) -> None:
    """Print mixture, drop reasons, shards, and `length` tokens from `token` on in shard number `shard`, decoded."""
    console = TextConsole()
    console.print(f"{manifest.name}, phase {manifest.phase}, build {manifest.build_id[:16]}")
    console.print()
    shares = mixture_table(asdict(manifest))
    console.print(grid(shares.title, shares.header, shares.rows))
    console.print()
    reasons = [
        (s.name, s.rows_in, s.rows_kept, ", ".join(f"{k} {v:,}" for k, v in s.dropped.items()) or "-")
        for s in manifest.sources
    ]
    table = grid("Documents", ("source", "in", "kept", "dropped by reason"), reasons)
    table.columns[-1].justify = "left"
    console.print(table)
    console.print()
    rows = [(i, s.path, s.tokens, s.documents, s.sha256[:16]) for i, s in enumerate(manifest.shards)]
    console.print(grid("Shards", ("number", "file", "tokens", "documents", "sha256"), rows))
    if manifest.evals:
        sets = []
        for evalset in manifest.evals:
            license_note = f", {evalset.license}" if evalset.license else ""
            sets.append(f"{evalset.name} ({evalset.items:,} items{license_note})")
        console.print(f"\nAsked while training: {', '.join(sets)}")
    console.print()
    print_window(manifest, shard, token, length, console)


def print_window(manifest: Manifest, shard: int, token: int, length: int, console: TextConsole) -> None:
    """Print the text of a window, and the rows of the source files it came from. Raises UserError."""
    if shard >= len(manifest.shards):
        raise UserError(f"--shard {shard}: there are {len(manifest.shards)} shards, numbered from 0")
    chosen = manifest.shards[shard]
    if token >= chosen.tokens:
        raise UserError(f"--token {token}: {chosen.path} has {chosen.tokens:,} tokens")
    stop = min(token + length, chosen.tokens)
    text = Decoder(manifest).text(chosen.path, token, stop)
    (rows,) = [[]] if manifest.adopted else rows_of_spans(manifest, [(chosen.path, token, stop)])
    console.print(f"{chosen.path}, tokens {token:,} to {stop:,}:")
    console.print(text)
    console.print()
    for row in rows:
        where = f"{row.source}:{row.source_file} row {row.source_row}"
        console.print(f"  from {where}  id {row.document_id.hex()}  {row.url or ''}")
    if manifest.adopted:
        console.print("  adopted: which documents these are is not known")
