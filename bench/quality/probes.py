"""Linear probes on held-out items, and bootstrap intervals, in numpy.

Shapes: B items, D dimensions of the vectors, T targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fluxtalk.errors import UsageError

Doubles = NDArray[np.float64]

PENALTIES = tuple(10.0**power for power in range(-5, 3))
"""Ridge penalties to choose from, per item, on inputs of unit variance."""
RESAMPLES = 2000
_DRAWN_AT_ONCE = 2**22


@dataclass(frozen=True)
class RidgeProbe:
    """A fitted ridge regression: ``y = (x - mean) @ weights + intercept``."""

    mean_D: Doubles
    weights_DT: Doubles
    intercept_T: Doubles
    penalty_T: Doubles
    """The penalty per item that was chosen for each target."""

    def predict(self, x_BD: ArrayLike) -> Doubles:
        """Predict targets, (B, T)."""
        x = np.asarray(x_BD, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.mean_D):
            raise UsageError(f"This probe reads vectors of shape (items, {len(self.mean_D)}); got {x.shape}.")
        predicted: Doubles = (x - self.mean_D) @ self.weights_DT + self.intercept_T
        return predicted


def fit_ridge(x_BD: ArrayLike, y_BT: ArrayLike, penalties: tuple[float, ...] = PENALTIES) -> RidgeProbe:
    """Ridge regression on standardized inputs, the penalty of each target chosen by leave-one-out cross-validation.

    Exact and in closed form from one singular value decomposition (Golub, Heath and Wahba 1979, "Generalized
    cross-validation as a method for choosing a good ridge parameter"). The intercept is not penalized.

    Args:
        penalties: positive, each per item: the least-squares sum is penalized by ``penalty * B``.

    Raises:
        UsageError: the shapes do not fit, something is not finite, there are fewer than three items, or a penalty is
            not positive.
    """
    x, y = _checked(x_BD, y_BT)
    if not penalties or not all(penalty > 0 for penalty in penalties):
        raise UsageError(f"Ridge regression needs one or more positive penalties; got {penalties}.")
    count = len(x)
    mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    deviation = x.std(axis=0)
    # A constant column says nothing, whatever rounding left of it.
    scale = np.where(deviation > 1e-10 * np.maximum(np.abs(mean), 1e-300), deviation, np.inf)
    u, s, vt = np.linalg.svd((x - mean) / scale, full_matrices=False)
    rotated = u.T @ (y - y_mean)
    errors, solutions = [], []
    for penalty in penalties:
        shrink = s**2 / (s**2 + penalty * count)
        fitted = u @ (shrink[:, None] * rotated)
        own_share = 1 / count + np.square(u) @ shrink
        # A row that its own value alone fits is predicted by nothing else: its error is as large as can be.
        errors.append(np.square((y - y_mean - fitted) / np.maximum(1 - own_share, 1e-12)[:, None]).mean(axis=0))
        solutions.append(vt.T @ ((s / (s**2 + penalty * count))[:, None] * rotated))
    best = np.argmin(errors, axis=0)
    weights = np.stack(solutions)[best, :, np.arange(y.shape[1])].T / scale[:, None]
    return RidgeProbe(mean, weights, y_mean, np.asarray(penalties)[best])


class ProbeScore(NamedTuple):
    """R^2 of targets read off vectors on held-out items."""

    per_target: Doubles
    """(T,): R^2 of each target; 0 is as good as the test items' mean, worse is below 0."""
    per_item: Doubles
    """(B,): each item's share of the overall R^2, which is their mean."""

    @property
    def overall(self) -> float:
        """R^2 over all targets together: the share of their summed variance that is explained."""
        return float(self.per_item.mean())


def probe_score(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    penalties: tuple[float, ...] = PENALTIES,
) -> ProbeScore:
    """R^2 of a ridge regression fitted to training items, on test items.

    Args:
        train_x: (B, D); ``test_x`` likewise, with other items.
        train_y: (B, T); ``test_y`` likewise.

    Raises:
        UsageError: see `fit_ridge`; or a target is the same in all test items.
    """
    probe = fit_ridge(train_x, train_y, penalties)
    _, y = _checked(test_x, test_y)
    if y.shape[1] != len(probe.intercept_T):
        raise UsageError(
            f"Training items have {len(probe.intercept_T)} targets, test items {y.shape[1]}; give the same."
        )
    error = np.square(y - probe.predict(test_x))
    total = np.square(y - y.mean(axis=0))
    if not (total.sum(axis=0) > 0).all():
        raise UsageError("A target is the same in all test items, so that R^2 has no meaning; leave it out.")
    return ProbeScore(1 - error.sum(axis=0) / total.sum(axis=0), 1 - error.sum(axis=1) / total.sum(axis=1).mean())


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """The mean of paired differences, and its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(values: ArrayLike, seed: int, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """The percentile bootstrap interval of a mean (Efron 1979); the same bit for bit for the same arguments.

    Args:
        values: (B,), one per item.
        seed: seeds the resampling.
        level: confidence, in (0, 1).

    Raises:
        UsageError: an argument is outside its range, or a value is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise UsageError(f"A bootstrap needs two or more finite values in one row; got shape {x.shape}.")
    if not 0 < level < 1:
        raise UsageError(f"The level of a confidence interval is between 0 and 1; got {level}.")
    if resamples < 1:
        raise UsageError(f"A bootstrap needs at least 1 resample; got {resamples}.")
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // len(x))
    means = [
        x[generator.integers(len(x), size=(min(at_once, resamples - done), len(x)))].mean(axis=1)
        for done in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_bootstrap_difference(
    a: ArrayLike, b: ArrayLike, seed: int, level: float = 0.95, resamples: int = RESAMPLES
) -> Difference:
    """The mean of ``a - b``, item by item, and its bootstrap interval.

    Args:
        a: (B,), one value per item; ``b`` the other system's values of the same items.

    Raises:
        UsageError: they are not of one length; see `bootstrap_interval` for the rest.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise UsageError(f"Paired values are of the same items; got shapes {first.shape} and {second.shape}.")
    interval = bootstrap_interval(first - second, seed, level, resamples)
    return Difference(float((first - second).mean()), *interval)


def _checked(x: ArrayLike, y: ArrayLike) -> tuple[Doubles, Doubles]:
    inputs, targets = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if inputs.ndim != 2 or targets.ndim != 2 or len(inputs) != len(targets) or len(inputs) < 3:
        raise UsageError(
            "A probe reads vectors of shape (items, dimensions) and targets of shape (items, targets), of three items "
            f"or more; got {inputs.shape} and {targets.shape}."
        )
    if not (np.isfinite(inputs).all() and np.isfinite(targets).all()):
        raise UsageError("A probe needs finite vectors and targets; got NaN or infinity.")
    return inputs, targets
