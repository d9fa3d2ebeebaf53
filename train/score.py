"""Bits per byte of a trained model, in windows that do not overlap and in windows that slide.

    python -m train.score runs/a --stride 64 --window 2048
    python -m train.score runs/golf --compat pr465      as the record counts that this run is compared with

Options that are not given are the recipe's: train.eval_stride, train.eval_seq_len, train.eval_counting.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import get_args

import torch

from train.checkpoint.load_model import TrainedModel, add_model_arguments, open_trained_model, to_inference
from train.config import Counting, TrainConfig, TrainError
from train.data.manifest import ManifestError
from train.data.remote import is_address
from train.eval.multiple_choice import MultipleChoice
from train.eval.rows import FILE
from train.eval.validation import EVAL_TOKENS, Score, Validation
from train.exit_status import complain, run_command
from train.model.attention import choose_kernel
from train.model.masks import MaskBuilder
from train.model.transformer import Model
from train.overrides import configs

GPU_TOKENS = 8 * EVAL_TOKENS  # targets a forward pass on a GPU, about


class Scorer:
    """The plain windows of a trained model's validation text, and the sliding ones if they are asked for."""

    def __init__(self, trained: TrainedModel, cfg: TrainConfig, limit: int, with_rows: bool = False) -> None:
        """limit: targets scored at most, 0 for all. with_rows: score each source too, and ask the questions.

        Raises TrainError where there is nothing to score.
        """
        self.cfg = cfg
        self.document_mask = bool(trained.point.state["identity"]["train"]["document_mask"])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if on_cuda and cfg.dtype != "float32" else torch.float32
        self.compiles = cfg.compile is True or (cfg.compile == "auto" and on_cuda)
        self.validations: dict[str, Validation] = {}
        length = trained.seq_len
        strides: dict[str, tuple[int, int | None]] = {f"windows of {length:,}": (length, None)}
        if cfg.eval_stride is not None:
            window = cfg.eval_seq_len or length
            if not cfg.eval_stride <= window <= trained.cfg.max_seq_len:
                raise TrainError(
                    f"a window of {window:,} tokens that moves on by {cfg.eval_stride:,}: it must be at least that "
                    f"long, and at most model.max_seq_len = {trained.cfg.max_seq_len:,}; see --window and --stride"
                )
            strides[f"windows of {window:,} by {cfg.eval_stride:,}"] = (window, cfg.eval_stride)
        choices = MultipleChoice(trained.manifest, trained.cfg.max_seq_len, cfg.eval_items) if with_rows else None
        for name, (window, stride) in strides.items():
            self.validations[name] = Validation(
                trained.manifest,
                window,
                limit,
                None,
                0,
                1,
                choices=choices if stride is None else None,
                document_mask=self.document_mask,
                by_source=with_rows and stride is None,
                stride=stride,
                counting=cfg.eval_counting,
                row=length,
                pass_tokens=GPU_TOKENS if on_cuda else None,
            )

    def score(self, model: Model, plain_only: bool = False) -> dict[str, Score]:
        """Return the scores of `model` by kind of window, the plain ones first.

        The model's weights are rounded to the type they are used in.
        """
        to_inference(model, self.device, self.dtype)
        if self.compiles:
            model.compile_parts()
        scores = {}
        for name, validation in self.validations.items():
            length, documents = validation.seq_len, self.document_mask
            kernel = choose_kernel(self.cfg.attention, model.cfg, length, documents, self.device, self.dtype)
            model.mask_builder = MaskBuilder(model.cfg, kernel)
            scores[name] = validation.score(model, self.device)
            if plain_only:
                break
        return scores

    def keep(self, trained: TrainedModel, score: Score) -> Path:
        """Write the rows of the score of the plain windows into the run's folder. Returns the file.

        Raises TrainError where documents are not known.
        """
        if score.document_nats is None:
            raise TrainError("--rows: which documents the shards have is not known, or --compat counts some twice")
        path = trained.point.folder.absolute().parents[1] / FILE
        about = {"step": trained.point.step, "average": trained.average}
        next(iter(self.validations.values())).keep(path, trained.manifest, score, about)
        return path


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which model is scored, and how."""
    add_model_arguments(parser, averages=("ema", "swa", "none"))
    parser.set_defaults(average=None)
    parser.add_argument("--tokens", type=int, metavar="N", help="targets to score at most (0: all); else eval_tokens")
    parser.add_argument("--stride", type=int, metavar="S", help="score sliding windows too, which move on by so many")
    parser.add_argument("--window", type=int, metavar="L", help="tokens of a sliding window")
    parser.add_argument("--compat", choices=get_args(Counting)[1:], help="count as that parameter-golf record did")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="K=V", help="other values of keys")
    parser.set_defaults(rows=False)


def open_scored(given: argparse.Namespace) -> tuple[TrainedModel, TrainConfig, Scorer]:
    """Return the model that the arguments name, the keys of its phase, and what scores it.

    Without --average it is the run's average, if it held one. Raises as open_trained_model and `configs` do.
    """
    trained = open_trained_model(given.run, given.manifest, "", given.checkpoint)
    counts = trained.point.state.get("averages", {})
    average = given.average or next((name for name in ("swa", "ema") if counts.get(name)), "none")
    trained = dataclasses.replace(trained, average="" if average == "none" else average)
    phase = trained.point.state["identity"]["phase"]
    settings = list(given.set)
    for key, value in (("stride", given.stride), ("seq_len", given.window), ("counting", given.compat)):
        settings += [] if value is None else [f"train.eval_{key}={value}"]
    _, cfg = configs(trained.manifest.recipe, phase, settings, str(trained.manifest.file("manifest.json")))
    limit = cfg.eval_limit if given.tokens is None else given.tokens
    return trained, cfg, Scorer(trained, cfg, limit, given.rows)


def of_which(trained: TrainedModel) -> str:
    """Return which weights of which run these are."""
    return f"{trained.point.folder}, {trained.average or 'the trained weights'}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m train.score", description="Score a trained model")
    add_score_arguments(parser)
    parser.add_argument("--rows", action="store_true", help="keep a row a document in the run, for `pipeline compare`")
    given = parser.parse_args(arguments)
    try:
        if given.rows and is_address(given.run):
            raise TrainError(f"{given.run}: --rows writes into the run's folder: copy the run to this machine first")
        trained, cfg, scorer = open_scored(given)
        print(f"{of_which(trained)}, counted as {cfg.eval_counting}")
        scores = scorer.score(trained.model(scorer.device, scorer.dtype))
        if given.rows:
            print(f"written: {scorer.keep(trained, next(iter(scores.values())))}")
        for name, score in scores.items():
            print(
                f"{name:<28} {score.nats:.8f} nats/token, {score.bits_per_byte:.8f} bits/byte "
                f"({score.tokens:,} tokens, {score.bytes:,} bytes)"
            )
    except (TrainError, ManifestError, OSError) as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    run_command(main)
