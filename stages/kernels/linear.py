"""A linear model over hashed n-grams of words, compiled: training and scoring of whole batches of documents.

A document is the mean of its features, one and two words in a row, each hashed to one of the weights; its score is the
logistic function of the bias and the mean of their weights (Joulin et al. 2016 without the hidden layer). All is added
in the order of the text and in double precision, so a score has the same bits on every machine.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.kernels.jit import compiled, get, int64, uint64
from stages.kernels.text_columns import utf8_buffers
from stages.kernels.words import BASE, folded, next_word, spread

BITS = 20  # of a feature: a million weights in four megabytes, which a core's caches hold
SHIFT = uint64(64 - BITS)
STEEP = 40.0  # beyond it the logistic function is as good as 0 or 1
LOG2_E, LN_2 = 1 / math.log(2), math.log(2)
TERMS = 14  # of the series of exp between -ln(2) / 2 and ln(2) / 2: its error is below that of rounding


@compiled
def logistic(x: float) -> float:
    """Return 1 / (1 + exp(-x)), by sums and products alone: the C library's exp differs between processors."""
    x = min(max(x, -STEEP), STEEP)
    halvings = int64(math.floor(abs(x) * LOG2_E + 0.5))
    rest = halvings * LN_2 - abs(x)
    power = 1.0
    for k in range(TERMS, 0, -1):
        power = 1.0 + power * rest / k
    for _ in range(halvings):
        power *= 0.5
    return 1.0 / (1.0 + power) if x > 0 else power / (1.0 + power)


@compiled
def fill_features(data: Any, a: int, b: int, fold: Any, features: Any) -> int:
    """Fill `features` with those of the text [a, b), in order; returns how many, fewer than two a word."""
    n, before, i = 0, uint64(0), a
    while True:
        start, i, word = next_word(data, i, b, fold)
        if start == b:
            return n
        features[n] = int64(spread(word) >> SHIFT)
        n += 1
        if n > 1:
            features[n] = int64(spread(before * BASE + word) >> SHIFT)
            n += 1
        before = word


@compiled
def score_text(data: Any, a: int, b: int, fold: Any, weights: Any) -> float:
    """Return the score of the text [a, b). The last of `weights` is the bias."""
    n, total, before, i = 0, 0.0, uint64(0), a
    while True:
        start, i, word = next_word(data, i, b, fold)
        if start == b:
            break
        total += weights[int64(spread(word) >> SHIFT)]
        n += 1
        if n > 1:
            total += weights[int64(spread(before * BASE + word) >> SHIFT)]
            n += 1
        before = word
    return logistic(weights[len(weights) - 1] + total / max(1, n))


@compiled
def score_all(data: Any, offsets: Any, fold: Any, weights: Any, scores: Any) -> None:
    """Write the score of each document [offsets[d], offsets[d + 1])."""
    for d in range(len(scores)):
        scores[d] = score_text(data, int64(offsets[d]), int64(offsets[d + 1]), fold, weights)


@compiled
def train_epoch(
    data: Any, offsets: Any, order: Any, labels: Any, fold: Any, weights: Any, squares: Any, rate: float, features: Any
) -> float:
    """Go once over documents in `order` by AdaGrad (Duchi et al. 2011); returns the sum of their losses.

    labels: above 0 for a good document and below for a bad one; how far says how much it counts. squares: of each
    weight the sum of its squared gradients.
    """
    loss, bias = 0.0, len(weights) - 1
    for step in range(len(order)):
        d = order[step]
        n = fill_features(data, int64(offsets[d]), int64(offsets[d + 1]), fold, features)
        total = 0.0
        for k in range(n):
            total += weights[get(features, k)]
        score = logistic(weights[bias] + total / max(1, n))
        importance = abs(labels[d])
        loss -= importance * math.log(max(score if labels[d] > 0 else 1.0 - score, 1e-12))
        slope = importance * (score - (1.0 if labels[d] > 0 else 0.0))
        features[n] = bias
        for k in range(n + 1):
            at = get(features, k)
            gradient = slope / n if k < n else slope
            squares[at] += gradient * gradient
            if squares[at] > 0:
                weights[at] -= rate * gradient / math.sqrt(squares[at])
    return loss


def train(
    texts: pa.Array, labels: npt.NDArray[np.float64], order: npt.NDArray[np.int64], epochs: int, rate: float
) -> tuple[npt.NDArray[np.float32], list[float]]:
    """Return weights, the bias last, and the mean loss of each epoch. order: of the documents, the same each epoch."""
    data, offsets = utf8_buffers(texts)
    weights, squares = np.zeros((1 << BITS) + 1), np.zeros((1 << BITS) + 1)
    features = np.empty(int(np.diff(offsets).max(initial=0)) + 2, np.int64)
    importance = float(np.abs(labels[order]).sum())
    losses = [
        train_epoch(data, offsets, order, labels, folded(), weights, squares, rate, features) / importance
        for _ in range(epochs)
    ]
    return weights.astype(np.float32), losses


def score(texts: pa.Array, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the score of each text of a column, between 0 and 1."""
    data, offsets = utf8_buffers(texts)
    scores = np.empty(len(texts))
    score_all(data, offsets, folded(), weights, scores)
    return scores
