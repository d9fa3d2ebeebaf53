"""datatrove curating a folder of parquet files as FineWeb did: four filters, then MinHash in four stages.

    python -m benchmarks.curate_peer IN OUT [--workers 2]

Its users write one such script. In a module of its own, because datatrove's workers import what it names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def xxh64(text: str) -> int:
    """What datatrove 0.10 hashes with; its own call fails with xxhash 4, which takes bytes alone."""
    import xxhash

    return int(xxhash.xxh64_intdigest(text.encode()))


def signature(folder: Path) -> Any:
    """MinHash's first stage, FineWeb's 14 x 8 over 5-grams."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

    stage = MinhashDedupSignature(str(folder), MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8))
    stage._hash_func = xxh64
    return stage


def blanks() -> Any:
    """A tokenizer for datatrove's filters whose words are what white space separates; no spaCy for sentences either."""
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer

    class Blanks(WhitespaceTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

    return Blanks()


def filters(words: str = "punctuation") -> list[Any]:
    """The four filters, in the order of `benchmarks.filter.RULES`, as FineWeb sets them, or with `blanks` for words."""
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    given = {"language": blanks()} if words == "blanks" else {}
    c4 = C4QualityFilter(filter_no_terminal_punct=False, **given)
    return [GopherRepetitionFilter(**given), GopherQualityFilter(**given), c4, FineWebQualityFilter(**given)]


def curate(source: Path, out: Path, workers: int) -> None:
    """`source`/*.parquet, one a task, to `out`/curated."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    tasks = len(list(source.glob("*.parquet")))
    kept, near = out / "filtered", out / "minhash"

    def run(steps: list[Any], tasks: int, name: str) -> None:
        LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=str(out / "logs" / name)).run()

    run([ParquetReader(str(source)), *filters(), ParquetWriter(str(kept))], tasks, "filter")
    tasks = len(list(kept.glob("*.parquet")))
    run([ParquetReader(str(kept)), signature(near / "signatures")], tasks, "signatures")
    run([MinhashDedupBuckets(str(near / "signatures"), str(near / "buckets"))], 14, "buckets")
    run([MinhashDedupCluster(str(near / "buckets"), str(near / "remove"))], 1, "cluster")
    last = [ParquetReader(str(kept)), MinhashDedupFilter(str(near / "remove")), ParquetWriter(str(out / "curated"))]
    run(last, tasks, "apply")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    curate(options.source, options.out, options.workers)
