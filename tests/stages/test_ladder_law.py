"""The law of a ladder: on public runs that it did not see, and on runs drawn from laws that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import DataError
from stages.ladder.law import MISFIT, NOISE, best_rate, predict

# mlfoundations/scaling, exp_data/models, one times Chinchilla's tokens: N without embeddings, tokens, and the loss on
# C4's validation text of models trained on C4, RedPajama and RefinedWeb
PUBLIC = (
    (5_727_840, 211_386_240, (5.2207, 5.3870, 5.2719)),
    (53_092_864, 1_578_280_960, (3.8003, 3.8999, 3.8609)),
    (124_628_544, 3_073_547_520, (3.4326, 3.5311, 3.5179)),
    (359_973_888, 8_232_325_120, (3.0417, 3.1498, 3.1305)),
    (1_336_510_464, 28_795_904_000, (2.6569, 2.7688, 2.7634)),
    (6_682_841_088, 137_788_211_200, (2.3822, 2.4250, 2.4547)),
)
COMPUTE = [6 * n * d for n, d, _ in PUBLIC]


@pytest.mark.parametrize("corpus", range(3))
@pytest.mark.parametrize(("rung", "error"), [(3, 0.03), (4, 0.06)])
def test_public_runs_are_predicted_from_the_three_smallest(corpus, rung, error):
    losses = [loss[corpus] for _, _, loss in PUBLIC]
    said = predict(COMPUTE[:3], losses[:3], COMPUTE[rung])
    assert said.low < losses[rung] < said.high
    assert abs(said.middle - losses[rung]) < error and said.high - said.low < 0.5


def test_what_lies_too_far_is_refused():
    losses = [loss[0] for _, _, loss in PUBLIC]
    with pytest.raises(DataError, match="2,404 times the compute"):
        predict(COMPUTE[:3], losses[:3], COMPUTE[5])
    with pytest.raises(DataError, match="three sizes"):
        predict(COMPUTE[:2], losses[:2], COMPUTE[3])
    with pytest.raises(DataError, match="no better than the smallest"):
        predict(COMPUTE[:3], losses[2::-1], COMPUTE[3])


@given(st.floats(0.5, 2.5), st.floats(0.05, 0.2), st.floats(1.0, 3.0), st.floats(0.0, 1.9))
def test_a_law_without_noise_lies_within(floor, exponent, scale, decades):
    compute = 1e17 * 10 ** np.linspace(0, 1.5, 4)
    law = lambda c: floor + scale * (c / 1e17) ** -exponent  # noqa: E731
    said = predict(compute.tolist(), law(compute).tolist(), compute[-1] * 10**decades)
    assert said.low < law(compute[-1] * 10**decades) < said.high
    assert said.decades == pytest.approx(decades, abs=1e-9)


def test_intervals_cover_runs_drawn_from_known_laws():
    rng, inside = np.random.default_rng(5), 0
    for _ in range(200):
        floor, exponent, scale = rng.uniform(1, 2.4), rng.uniform(0.05, 0.2), rng.uniform(1, 3)
        compute = np.append(10 ** np.linspace(16, 17.5, 3), 10**18.5)
        losses = floor + scale * (compute / 1e16) ** -exponent + rng.normal(0, NOISE, 4)
        losses[3] += rng.normal(0, MISFIT)  # a decade beyond, where the law is a little off
        if losses[2] < losses[0]:
            said = predict(compute[:3].tolist(), losses[:3].tolist(), compute[3])
            inside += said.low < losses[3] < said.high
    assert inside >= 180


def test_the_best_of_three_rates():
    curve = lambda x: 3 + 0.2 * (x - 0.4) ** 2  # noqa: E731
    found = best_rate([curve(-1), curve(0), curve(1)], 2.0)
    assert found.factor == pytest.approx(2**0.4) and found.low < 2**0.4 < found.high
    assert best_rate([3.0, 2.9, 2.0], 2.0) is None, "the best is higher than all that were tried"
    assert best_rate([2.9, 3.0, 2.9], 2.0) is None
    rng, inside = np.random.default_rng(2), 0
    for _ in range(400):
        found = best_rate([curve(x) + rng.normal(0, 0.01) for x in (-1, 0, 1)], 2.0, 0.01)
        inside += found is not None and found.low < 2**0.4 < found.high
    assert inside > 370
