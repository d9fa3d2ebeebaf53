"""A trained model as one small file, scored before and after.

    python -m train.artefact runs/golf --stride 64      writes runs/golf/model.artefact

The weights are rounded by the recipe's rules (train.artefact, train/quantize.py), written (train/artefact_file.py),
read back and scored again. What is printed: the scores before and behind the round trip; the size, code counted,
against the limit; the two packings beside the entropy; and what each rule saves and costs, found by leaving it out:
the tensors that it names are then stored in fp16.

It is the average of the weights that is packed, where the run held one (--average none: the trained weights).
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from train.artefact_file import (
    PREFIX,
    Packed,
    Packing,
    compress,
    encode,
    entropy_bytes,
    model_of,
    pack,
    read_artefact,
    write_artefact,
)
from train.checkpoint.load_model import TrainedModel
from train.config import ArtefactConfig, TrainConfig, TrainError
from train.data.manifest import ManifestError
from train.eval.validation import Score
from train.exit_status import complain, run_command
from train.model.transformer import Model
from train.score import Scorer, add_score_arguments, of_which, open_scored

HERE = Path(__file__).parent


def header_of(trained: TrainedModel) -> dict[str, Any]:
    """Return what an artefact says beside its tensors: all that building the model takes, and where it comes from."""
    tokenizer = trained.manifest.tokenizer
    return {
        "model": trained.cfg.fixed_by_run() | {"vocab_size": tokenizer.vocab_size},
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "provenance": trained.provenance(),
    }


def code_files() -> list[Path]:
    """Return the files of train/ that this command imports, and those that they import in turn."""
    files: list[Path] = []
    modules = ["train.artefact"]
    while modules:
        module = modules.pop()
        path = HERE.parent.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file() and file not in files:
                files.append(file)
                modules += [name for name in _imported(file) if name.split(".")[0] == "train"]
    return sorted(files)


def _imported(file: Path) -> list[str]:
    """Return the modules that a file imports, their packages, and what it takes from each as if it were a module."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name.rsplit(".", n)[0] for name in names for n in range(name.count(".") + 1)]


def rules_left_out(cfg: ArtefactConfig) -> dict[str, ArtefactConfig]:
    """Return the configuration with each rule replaced by fp16 in turn, by rule."""
    variants = {}
    for number, rule in enumerate(cfg.rules):
        kind, pattern = rule.split()
        if kind != "fp16":
            rules = (*cfg.rules[:number], f"fp16 {pattern}", *cfg.rules[number + 1 :])
            variants[rule] = dataclasses.replace(cfg, rules=rules)
    return variants


def size_of(packed: Packed, header: dict[str, Any], packing: Packing) -> int:
    """Return the bytes of the file that `packed` makes."""
    return PREFIX.size + len(compress(b"".join(encode(packed, header, packing))))


@dataclasses.dataclass
class Report:
    """What the command found."""

    before: dict[str, Score]
    after: dict[str, Score]
    sizes: dict[Packing, int]
    entropy: int
    code: list[Path]
    limit: int
    tensors: dict[str, list[int]]  # by kind: how many, and values in all
    rules: dict[str, tuple[int, int, Score]]  # tensors that the rule decides; file and plain score without it

    @property
    def file_bytes(self) -> int:
        """Size of the file that was written."""
        return min(self.sizes.values())

    @property
    def code_bytes(self) -> int:
        """Size of the code that is counted."""
        return sum(file.stat().st_size for file in self.code)

    def lines(self) -> list[str]:
        """Return the report as text."""
        total = self.file_bytes + self.code_bytes
        margin = self.limit - total
        fits = f"{margin:,} below" if margin >= 0 else f"{-margin:,} ABOVE"
        lines = ["score                            before         after    difference   bits/byte"]
        for name, before in self.before.items():
            was, now = before.bits_per_byte, self.after[name].bits_per_byte
            lines.append(f"{name:<26} {was:12.8f}  {now:12.8f}   {now - was:+11.8f}   ({before.tokens:,} tokens)")
        lines += [
            f"size     {self.file_bytes:,} bytes and {self.code_bytes:,} of code: {total:,}, {fits} {self.limit:,}",
            f"         code: the {len(self.code)} files of train/ that writing, reading and scoring it import, as they "
            "are; torch, numpy, safetensors and zstandard are not counted",
            f"packing  a byte each {self.sizes['bytes']:,}; 5, 6 or 8 bits each {self.sizes['bits']:,}; entropy of "
            f"what is stored {self.entropy:,} ({self.file_bytes / self.entropy - 1:+.2%})",
        ]
        kinds = (f"{kind} {count:,} of {values:,} values" for kind, (count, values) in sorted(self.tensors.items()))
        lines.append(f"tensors  {'; '.join(kinds)}")
        name, plain = next(iter(self.after.items()))
        lines.append(f"rule, if it were fp16          tensors     more bytes    less bits/byte, {name}")
        for rule, (count, size, score) in self.rules.items():
            saved = plain.bits_per_byte - score.bits_per_byte
            lines.append(f"{rule:<28} {count:9,} {size - self.file_bytes:+14,}      {saved:+12.8f}")
        return lines


def make_artefact(trained: TrainedModel, cfg: TrainConfig, scorer: Scorer, out: Path, costs: bool = True) -> Report:
    """Write the artefact of `trained` to `out`, read it back and score it; `costs`: find those of each rule too."""
    weights, header = trained.weights(), header_of(trained)
    before = scorer.score(model_with(trained, weights))
    packed = pack(weights, cfg.artefact)
    sizes = write_artefact(out, packed, header)
    after = scorer.score(model_of(read_artefact(out), out))
    tensors: dict[str, list[int]] = {}
    for name, kind in packed.kinds.items():
        entry = tensors.setdefault(kind, [0, 0])
        entry[0], entry[1] = entry[0] + 1, entry[1] + weights[name].numel()
    packing = min(sizes, key=lambda name: sizes[name])
    rules = {}
    for rule, variant in rules_left_out(cfg.artefact).items() if costs else ():
        without = pack(weights, variant)
        count = sum(kind != packed.kinds[name] for name, kind in without.kinds.items())
        score = next(iter(scorer.score(model_with(trained, without.weights()), plain_only=True).values()))
        rules[rule] = (count, size_of(without, header, packing), score)
    return Report(before, after, sizes, entropy_bytes(packed), code_files(), cfg.artefact.limit, tensors, rules)


def model_with(trained: TrainedModel, weights: dict[str, Tensor]) -> Model:
    """Return the model of `trained` with other weights."""
    tokenizer = trained.manifest.tokenizer
    model = Model(trained.cfg, tokenizer.vocab_size, tokenizer.bos_id)
    model.load_state_dict(weights)
    return model


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 done, 1 failed or above the limit, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m train.artefact", description="Pack a trained model into one file")
    add_score_arguments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to (default: model.artefact in the run's folder)"
    )
    given = parser.parse_args(arguments)
    try:
        trained, cfg, scorer = open_scored(given)
        out = given.out or trained.point.folder.absolute().parents[1] / "model.artefact"
        report = make_artefact(trained, cfg, scorer, out)
    except (TrainError, ManifestError, OSError) as error:
        return complain(error)
    print(f"{out}: {of_which(trained)}, counted as {cfg.eval_counting}")
    print("\n".join(report.lines()))
    return 0 if report.file_bytes + report.code_bytes <= report.limit else 1


if __name__ == "__main__":
    run_command(main)
