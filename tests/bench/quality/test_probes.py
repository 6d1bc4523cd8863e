"""Probes and intervals against scikit-learn, SciPy, refitting and known truths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score

from bench.quality.probes import (
    PENALTIES,
    Doubles,
    bootstrap_interval,
    fit_ridge,
    paired_bootstrap_difference,
    probe_score,
)
from fluxtalk.errors import UsageError

WIDE, TALL = (30, 40), (200, 12)


def _data(shape: tuple[int, int], noise: float, seed: int = 0) -> tuple[Doubles, Doubles]:
    """Inputs of very different scales and means, and three linear targets under noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.geomspace(0.01, 100, shape[1]) + rng.standard_normal(shape[1])
    y = (x - x.mean(axis=0)) / x.std(axis=0) @ rng.standard_normal((shape[1], 3)) + 5
    return x, y + noise * rng.standard_normal(y.shape)


@pytest.mark.parametrize("noise", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("shape", [TALL, WIDE], ids=["tall", "wide"])
def test_ridge_is_scikit_learns(shape: tuple[int, int], noise: float) -> None:
    """The same penalty for each target, and the same predictions of other items, which are not standardized anew."""
    x, y = _data(shape, noise)
    probe = fit_ridge(x, y)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    alphas = np.array(PENALTIES) * len(x)
    other = RidgeCV(alphas, alpha_per_target=True).fit((x - mean) / scale, y)
    np.testing.assert_allclose(probe.penalty_T * len(x), other.alpha_)
    fresh = _data((17, shape[1]), noise, seed=1)[0]
    np.testing.assert_allclose(probe.predict(fresh), other.predict((fresh - mean) / scale), rtol=1e-6, atol=1e-6)


def test_the_penalty_is_the_one_that_predicts_items_left_out_best() -> None:
    """Against refitting without each item in turn."""
    x, y = _data((25, 15), noise=6.0)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    errors = []
    for penalty in PENALTIES:
        left_out = [
            Ridge(penalty * len(x)).fit(np.delete(x, i, axis=0), np.delete(y, i, axis=0)).predict(x[i : i + 1])[0]
            for i in range(len(x))
        ]
        errors.append(np.square(y - np.array(left_out)).mean(axis=0))
    best = np.array(PENALTIES)[np.argmin(errors, axis=0)]
    assert len(set(best)) > 1  # or any one penalty would pass
    np.testing.assert_array_equal(fit_ridge(x, y).penalty_T, best)


def test_scores_are_r2() -> None:
    x, y = _data((300, 12), noise=4.0)
    score = probe_score(x[:200], y[:200], x[200:], y[200:])
    predicted = fit_ridge(x[:200], y[:200]).predict(x[200:])
    np.testing.assert_allclose(score.per_target, r2_score(y[200:], predicted, multioutput="raw_values"))
    assert score.overall == pytest.approx(r2_score(y[200:], predicted, multioutput="variance_weighted"))
    assert score.per_item.shape == (100,)


def test_a_known_share_of_noise_is_found() -> None:
    """y is x plus noise of variance 0, 1 and 4: R^2 is 1, 1/2 and 1/5; nothing is read from what is independent."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 3))
    y = x + rng.standard_normal(x.shape) * [0, 1, 2]
    found = probe_score(x[:10_000], y[:10_000], x[10_000:], y[10_000:])
    np.testing.assert_allclose(found.per_target, [1, 0.5, 0.2], atol=0.02)
    unrelated = rng.standard_normal((4000, 60))
    halves = unrelated[:2000], y[:2000], unrelated[2000:], y[2000:4000]
    assert probe_score(*halves).overall == pytest.approx(0, abs=0.01)
    # Without a penalty worth the name, 60 numbers of no meaning look worse than none.
    assert probe_score(*halves, penalties=(1e-9,)).overall < -0.02


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_column_changes_nothing(value: float) -> None:
    x, y = _data(TALL, noise=1.0)
    more = np.concatenate([x, np.full((len(x), 1), value)], axis=1)
    fresh = _data((5, 12), noise=1.0, seed=1)[0]
    # Elsewhere the column need not be constant; nothing is known about it.
    np.testing.assert_allclose(fit_ridge(more, y).predict(np.c_[fresh, np.arange(5)]), fit_ridge(x, y).predict(fresh))


def test_the_interval_is_scipys() -> None:
    """Two Monte Carlo estimates of one quantile: they agree to their own error."""
    values = np.random.default_rng(0).exponential(size=150)
    ours = bootstrap_interval(values, seed=0, level=0.9, resamples=20_000)
    other = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours == pytest.approx((other.low, other.high), abs=0.005)
    assert ours.low < values.mean() < ours.high


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(500):
        low, high = bootstrap_interval(rng.normal(3, 2, 80), seed, level=0.8, resamples=300)
        held += low <= 3 <= high
    # Its own standard error is 1.8 %; a percentile interval of 80 items is slightly short.
    assert 0.73 < held / 500 < 0.85


def test_the_same_arguments_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal(100)
    first = bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values.tolist(), seed=3) == first
    assert bootstrap_interval(values, seed=4) != first
    # How much fits into memory is no part of the draw.
    monkeypatch.setattr("bench.quality.probes._DRAWN_AT_ONCE", 700)
    assert bootstrap_interval(values, seed=3) == first


def test_pairing_removes_what_items_have_in_common() -> None:
    """Items differ by far more than the systems do: only the paired interval sees the difference."""
    rng = np.random.default_rng(0)
    items = rng.normal(0, 10, 200)
    a, b = items + rng.normal(0.5, 0.5, 200), items
    difference = paired_bootstrap_difference(a, b, seed=0)
    assert difference.mean == pytest.approx((a - b).mean())
    assert 0.3 < difference.low < difference.mean < difference.high < 0.7
    unpaired = [bootstrap_interval(x, seed=0) for x in (a, b)]
    assert unpaired[0].low < unpaired[1].high
    swapped = paired_bootstrap_difference(b, a, seed=0)
    assert (swapped.low, swapped.high) == pytest.approx((-difference.high, -difference.low), abs=0.02)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x, y: fit_ridge(x[:, 0], y), r"got \(9,\) and \(9, 2\)"),
        (lambda x, y: fit_ridge(x[:5], y), r"got \(5, 4\) and \(9, 2\)"),
        (lambda x, y: fit_ridge(x[:2], y[:2]), "three items or more"),
        (lambda x, y: fit_ridge(x * np.nan, y), "NaN or infinity"),
        (lambda x, y: fit_ridge(x, y).predict(x[:, :3]), r"\(items, 4\); got \(9, 3\)"),
        (lambda x, y: fit_ridge(x, y, ()), "penalties"),
        (lambda x, y: fit_ridge(x, y, (0.0,)), "penalties"),
        (lambda x, y: probe_score(x, y, x, y[:, :1]), "2 targets, test items 1"),
        (lambda x, y: probe_score(x, y, x, y * 0), "same in all test items"),
        (lambda x, y: bootstrap_interval(y, seed=0), r"got shape \(9, 2\)"),
        (lambda x, y: bootstrap_interval([1.0], seed=0), "two or more"),
        (lambda x, y: bootstrap_interval([1.0, np.inf], seed=0), "finite"),
        (lambda x, y: bootstrap_interval(y[:, 0], seed=0, level=1.0), "got 1.0"),
        (lambda x, y: bootstrap_interval(y[:, 0], seed=0, resamples=0), "at least 1 resample; got 0"),
        (lambda x, y: paired_bootstrap_difference(x[:, 0], y[:5, 0], seed=0), r"\(9,\) and \(5,\)"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(call: Callable[[Doubles, Doubles], object], said: str) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match=said):
        call(rng.standard_normal((9, 4)), rng.standard_normal((9, 2)))
