"""Near-duplicates: MinHash signatures, recall and whole deduplication, against rensa and datatrove; one core.

    python -m benchmarks.near [--documents 20000] [--whole 60000] [--peer-documents 200] [--rounds 3] [--data FOLDER]

Processor seconds of this process, candidates in turn, several rounds, medians (what else the machine does is not
counted, but it slows what shares its core). Documents are runs of up to 300 words of real text, a tenth of them
near-duplicates of others, planted at a Jaccard similarity of .8 or more.

Signatures: ours over arrow columns, and as the unit `write_keys`, parquet in and keys out; rensa's RMinHash as its
users feed it, with word 5-grams as Python strings; datatrove's MinhashDedupSignature over a share of the same
documents.

Recall: pairs of known true similarity, in texts of plain words so that all agree on what a word is; found means kept
together by the whole stage `dedup`, beside what the S-curve says and rensa's RMinHashLSH at 16 x 8
finds.

Whole: sign, match, join, drops and apply, every unit of the stage `dedup` in this process, by step.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.curate_peer import signature
from benchmarks.filter import GROUP
from pipeline.engine.context import Context, drive
from pipeline.engine.executor import Reply, UnitSpec
from pipeline.engine.progress import Progress
from pipeline.engine.store import open_store
from pipeline.executors.inline import InlineExecutor
from pipeline.recipe import parse_recipe
from stages.dedup import minhash
from stages.dedup.config import Dedup
from stages.dedup.keys import write_keys
from stages.dedup.stage import DEDUP
from stages.filter.stage import FILTER
from stages.kernels.words import words
from stages.task import Artifact, Task

WORDS, LEAST = 300, 10  # of a document, at most and at least
FIXED = (0.5, 0.6, 0.7, 0.8, 0.9)
PAIRS = 800  # planted at each fixed similarity; 2.5 times as many over .8 to 1
PART = 20_000  # documents of a part
LIBRARIES = ("numba", "numpy", "pyarrow", "rensa", "datatrove", "spacy")


class TimedExecutor(InlineExecutor):
    """Units one after another in this process, their processor seconds summed by stage and step."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)

    async def submit(self, spec: UnitSpec) -> Reply:
        """Run the unit and note what it took. Steps of a source's parts, whose labels are numbers, are `apply`."""
        start = time.process_time()
        reply = await super().submit(spec)
        step = spec["label"].removeprefix("web ").split()[0]
        self.seconds[spec["stage"], "apply" if step.isdigit() else step] += time.process_time() - start
        return reply


class Corpus:
    """Documents in files of PART, and a build of their own over them."""

    def __init__(self, texts: list[str], folder: Path):
        folder.mkdir(parents=True)
        for at in range(0, len(texts), PART):
            pq.write_table(pa.table({"text": texts[at : at + PART]}), folder / f"{at:09d}.parquet")
        recipe = {"name": "near", "sources": {"web": {"from": "parquet", "path": f"{folder}/*.parquet"}}}
        self.executor = TimedExecutor()
        store, progress = open_store(str(folder / "out")), Progress(quiet=True)
        self.context = Context(parse_recipe(recipe, "near"), store, lambda: self.executor, progress)

    def filtered(self) -> list[list[Artifact]]:
        """Return the parts as the filter leaves them: what a unit needs to read each."""
        parts = drive(self.context, self.context.stage(FILTER)).docs["web"]
        return [[replace(one, path=self.context.artifact_path(one)) for one in part.inputs] for part in parts]

    def dropped(self) -> dict[bytes, bytes]:
        """Deduplicate. Returns of every document that is dropped the document kept in its stead, by their ids."""
        drops = drive(self.context, self.context.stage(DEDUP)).drops
        kept: dict[bytes, bytes] = {}
        for artifact in drops:
            table = pq.read_table(self.context.artifact_path(artifact), columns=["document_id", "kept_id"])
            kept |= dict(zip(table["document_id"].to_pylist(), table["kept_id"].to_pylist(), strict=True))
        return kept


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """Runs of LEAST to WORDS words."""
    for text in texts:
        found = text.split()
        for i in range(0, len(found) - LEAST, WORDS):
            yield " ".join(found[i : i + WORDS])


def altered(text: str, similarity: float, rng: random.Random) -> tuple[str, float]:
    """(a text of about that Jaccard similarity with `text`, what it is): words changed, and then cut at the end.

    Words are what stands between blanks.
    """
    found = text.split()
    true = {tuple(found[i : i + 5]) for i in range(len(found) - 4)}
    for _ in range(rng.randint(0, int((1 - similarity) * len(found) / 12))):
        found[rng.randrange(len(found))] = f"changed{rng.randrange(10**9)}"
    mine: set[tuple[str, ...]] = set()
    shared, reached = 0, 0.0
    for end in range(5, len(found) + 1):
        shingle = tuple(found[end - 5 : end])
        shared += shingle in true and shingle not in mine
        mine.add(shingle)
        reached = shared / (len(true) + len(mine) - shared)
        if reached >= similarity:
            break
    return " ".join(found[:end]), reached


def with_duplicates(texts: list[str], rng: random.Random) -> list[str]:
    """The texts, the last tenth replaced by near-duplicates of others, in any order."""
    number = len(texts) // 10
    kept = texts[: len(texts) - number]
    kept += [altered(text, rng.uniform(0.8, 1), rng)[0] for text in rng.sample(kept, number)]
    rng.shuffle(kept)
    return kept


def grams(text: str) -> list[str]:
    """Word 5-grams as rensa's users make them."""
    found = text.split()
    return [" ".join(found[i : i + 5]) for i in range(max(1, len(found) - 4))]


def rensa_signature(text: str, permutations: int = 128) -> Any:
    """A signature by rensa."""
    from rensa import RMinHash

    signature = RMinHash(num_perm=permutations, seed=42)
    signature.update(grams(text))
    signature.digest()
    return signature


def rensa_index(texts: list[str]) -> tuple[Any, list[Any]]:
    """(index of all, their signatures), each asked for its like as it goes in."""
    from rensa import RMinHashLSH

    index, signatures = RMinHashLSH(threshold=0.8, num_perm=128, num_bands=16), []
    for i, text in enumerate(texts):
        signatures.append(rensa_signature(text))
        index.query(signatures[-1])
        index.insert(i, signatures[-1])
    return index, signatures


def datatrove_signatures(texts: list[str], folder: Path) -> None:
    """datatrove's first stage."""
    from datatrove.data import Document

    signature(folder).run(Document(text=text, id=str(i)) for i, text in enumerate(texts))


def signatures(texts: list[str], peer_documents: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Documents and MB a second of each, medians over rounds, and the ratios of the same round."""
    columns = [pa.array(texts[i : i + GROUP]) for i in range(0, len(texts), GROUP)]
    shape = Dedup().minhash() or {}
    few = measure.spread(texts, measure.megabytes(texts) * peer_documents / len(texts))
    parts = Corpus(texts, folder / "ours").filtered()

    def unit() -> None:
        for number, part in enumerate(parts):
            write_keys(Task({"near": shape}, part, folder, f"sign{number}", lambda a: a.path))

    candidates: dict[str, tuple[list[str], Callable[[], Any]]] = {
        "ours, arrow columns, 14 x 8": (texts, lambda: [minhash.band_keys(column, **shape) for column in columns]),
        "ours, 16 x 8": (texts, lambda: [minhash.band_keys(column, 5, 16, 8) for column in columns]),
        "unit sign, parquet to keys": (texts, unit),
        "rensa, 112 permutations": (texts, lambda: [rensa_signature(text, 112) for text in texts]),
        "rensa, 128 permutations": (texts, lambda: [rensa_signature(text) for text in texts]),
        "rensa with RMinHashLSH, 16 x 8": (texts, lambda: rensa_index(texts)),
        "datatrove, 14 x 8": (few, lambda: datatrove_signatures(few, folder / "theirs")),
    }
    for name in ("ours, arrow columns, 14 x 8", "datatrove, 14 x 8"):
        candidates[name][1]()  # machine code and spaCy are loaded
    speeds = measure.rates({name: (len(used), call) for name, (used, call) in candidates.items()}, rounds)
    rates = measure.medians(speeds, 1)
    ours, _, unit_name, same, *_, theirs = candidates
    ratios = {
        f"{a} / {b}": round(measure.ratio(speeds[a], speeds[b]), 1)
        for a in (ours, unit_name)
        for b in (same, "rensa with RMinHashLSH, 16 x 8", theirs)
    }
    each = {name: measure.megabytes(used) / len(used) for name, (used, _) in candidates.items()}
    return {
        "documents": len(texts),
        "MB": round(measure.megabytes(texts), 1),
        "documents for datatrove": len(few),
        "documents/s": rates,
        "MB/s": {name: round(rate * each[name], 2) for name, rate in rates.items()},
        "rounds, documents/s": measure.rounded(speeds, 1),
        "ratios": ratios,
    }


def recall(texts: list[str], rng: random.Random, folder: Path) -> dict[str, Any]:
    """Share of planted pairs found by similarity: by the whole stage, as the S-curve has it, and by rensa."""
    from stages.schemas import document_id

    wanted = [*(s for s in FIXED for _ in range(PAIRS)), *(rng.uniform(0.8, 1) for _ in range(5 * PAIRS // 2))]
    plain = {" ".join(words(text)[:WORDS]) for text in rng.sample(texts, min(len(texts), 2 * len(wanted)))}
    bases = rng.sample(sorted(text for text in plain if text.count(" ") >= 200), len(wanted))
    pairs = [(text, *altered(text, similarity, rng)) for text, similarity in zip(bases, wanted, strict=True)]
    everything = [text for pair in pairs for text in pair[:2]]
    instead = Corpus(everything, folder).dropped()
    index, signed = rensa_index(everything)
    found: dict[str, Any] = {}
    for name, low, high in [*((f"{s}", s, s) for s in FIXED), (".8 to 1", 0.8, 1.0)]:
        start = len(FIXED) * PAIRS if low != high else FIXED.index(low) * PAIRS
        chosen = range(start, start + (PAIRS if low == high else 5 * PAIRS // 2))
        ends = [[document_id(text) for text in pairs[i][:2]] for i in chosen]
        ours = [instead.get(a, a) == instead.get(b, b) for a, b in ends]
        theirs = [2 * i in index.query(signed[2 * i + 1]) for i in chosen]
        found[name] = {
            "pairs": len(chosen),
            "mean true Jaccard": round(sum(pairs[i][2] for i in chosen) / len(chosen), 4),
            "found": round(sum(ours) / len(ours), 4),
            "S-curve 14 x 8": round(sum(minhash.chance_found(pairs[i][2], 14, 8) for i in chosen) / len(chosen), 4),
            "rensa, 16 x 8": round(sum(theirs) / len(theirs), 4),
            "S-curve 16 x 8": round(sum(minhash.chance_found(pairs[i][2], 16, 8) for i in chosen) / len(chosen), 4),
        }
    return found


def whole(texts: list[str], folder: Path) -> dict[str, Any]:
    """The stage `dedup` on one core, by step."""
    corpus = Corpus(texts, folder)
    dropped = corpus.dropped()
    seconds = {step: spent for (stage, step), spent in corpus.executor.seconds.items() if stage == DEDUP.name}
    total = sum(seconds.values())
    return {
        "documents": len(texts),
        "MB": round(measure.megabytes(texts), 1),
        "dropped": len(dropped),
        "documents/s": round(len(texts) / total),
        "MB/s": round(measure.megabytes(texts) / total, 1),
        "seconds": measure.rounded(seconds, 3),
    }


def main() -> None:
    """Run it all."""
    parser = measure.parser(__doc__, documents=20_000, whole=60_000, peer_documents=200, rounds=3, data=None)
    options = parser.parse_args()
    measure.use_one_core()
    machine, rng = measure.machine(LIBRARIES), random.Random(5)
    found = list(pieces(measure.corpus(150, options.data)))
    many = with_duplicates(rng.sample(found, min(options.whole, len(found))), rng)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {
            "machine": machine,
            "signatures": signatures(
                with_duplicates(rng.sample(found, options.documents), rng),
                options.peer_documents,
                options.rounds,
                folder / "signatures",
            ),
            "recall": recall(found, rng, folder / "recall"),
            "whole dedup": whole(many, folder / "whole"),
        }
    measure.report("near", result)


if __name__ == "__main__":
    main()
