"""Scores of the toy models of two parameter-golf records, against what their authors' own scripts print.

golf.md 5: weights of step 0, 320 validation targets. `once` is our own counting, whose values were found with another
loop than this.
"""

from __future__ import annotations

import pytest
import torch
from golf_data import VAL_BYTES, VAL_TARGETS, make_toy_mixture
from golf_toy import S2, S4, T, toy
from trainer_harness import TRAIN

from train.data.manifest import load_manifest
from train.eval.validation import Validation

SYSTEMS = {"pr465": (S2, 16), "pr352": (S4, 8)}  # its toy model, and the length of its sliding windows


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    path = make_toy_mixture(tmp_path_factory.mktemp("toy") / "toy" / "pretrain", {}, {"pretrain": TRAIN}, "pretrain")
    return load_manifest(path)


@pytest.mark.parametrize(("system", "nats", "bits"), [("pr465", 4.6837411, 2.6401797), ("pr352", 4.8040622, 2.7080036)])
def test_plain_scores_are_those_of_the_scripts(mixture, system, nats, bits):
    validation = Validation(mixture, T, 0, None, 0, 1, counting=system)
    score = validation.score(toy(SYSTEMS[system][0]), torch.device("cpu"))
    assert (score.tokens, score.bytes) == (VAL_TARGETS, VAL_BYTES)
    assert score.nats == pytest.approx(nats, abs=2e-6) and score.bits_per_byte == pytest.approx(bits, abs=2e-6)


@pytest.mark.parametrize(
    ("system", "counting", "scored", "nats", "bits"),
    [
        ("pr465", "pr465", 332, 4.710127, 2.685752),
        ("pr465", "once", 320, 4.732509, 2.667670),
        ("pr352", "pr352", 316, 4.793894, 2.684885),
        ("pr352", "once", 320, 4.794421, 2.702569),
    ],
)
@pytest.mark.parametrize("rows", [1, 32])
def test_sliding_scores_are_those_of_the_scripts(mixture, system, counting, scored, nats, bits, rows):
    model, length = SYSTEMS[system]
    validation = Validation(
        mixture, length, VAL_TARGETS, None, 0, 1, stride=4, counting=counting, row=T, pass_tokens=rows * length
    )
    score = validation.score(toy(model), torch.device("cpu"))
    assert score.tokens == scored
    assert score.nats == pytest.approx(nats, abs=2e-6) and score.bits_per_byte == pytest.approx(bits, abs=2e-6)
