"""Parity with eager PyTorch: the tolerance of each precision, and the differences that it bounds. Numpy only.

Shapes: B items, K tokens, D dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.config import StrictConfig, require

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
TIES = 1e-6
"""Difference of two scores up to which neither item is nearer."""


@dataclass(frozen=True)
class Tolerance(StrictConfig):
    """Largest differences of a precision from eager float32, on embeddings of length 1. None: no bound."""

    max_abs: float | None
    """Largest absolute difference of an embedding's element."""
    mean_abs: float | None
    """Mean absolute difference of the elements."""
    min_cosine: float
    """Smallest cosine of an item's two embeddings."""
    tokens: float | None
    """Largest difference of a token's element, relative to max(1, the largest expected magnitude)."""
    prefix: float
    """Largest difference between the embedding computed with k tokens and the one at k among all tokens."""
    rows: float | None
    """Largest difference between an item's embedding alone and in a batch, padded or not."""
    top1: float | None
    """Smallest share of items whose nearest other item stays the same."""
    attention: float | None = None
    """Largest difference of an attention weight; None derives it from the others (`attention_tolerance`)."""

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            require(
                value is None or (isinstance(value, int | float) and value >= 0),
                f"The tolerance {name} is a number of at least 0; got {value!r}.",
            )

    def promise(self) -> str:
        """Say what an embedding may differ by: its elements, or its cosine where they have no bound."""
        if self.max_abs is None:
            return f"a cosine of at least {self.min_cosine:g}"
        return f"at most {self.max_abs:.0e}"


TOLERANCES = {
    "fp32": Tolerance(1e-5, None, 0.999999, 1e-4, 1e-5, 1e-5, 1.0),
    "tf32": Tolerance(5e-3, None, 0.9999, None, 5e-3, 5e-3, None),
    "fp16": Tolerance(1e-2, 1e-3, 0.9999, None, 1e-2, 1e-2, None),
    "bf16": Tolerance(None, None, 0.9995, None, 5e-2, 5e-2, None),
    "int8": Tolerance(None, None, 0.995, None, 1e-5, 1e-5, None),
}
"""Precision to its tolerance on any machine, before anything is measured (`promise_of`). ``tf32`` is float32 on a
device that was told to round factors to 10 bits.

In float32 TensorRT sums in another order; on a CPU each graph has its own, smaller promise
(`fluxtalk.scoring.noise`). In int8 the head stays float32, so prefixes and rows
are as exact. Nearest neighbors in a lower precision are bounded by the quality gate, over the held-out items: golden
vectors are a few dozen items, some of them degenerate.
"""

EXPORT_TOLERANCE = Tolerance(1e-6, None, 0.999999, 1e-5, 1e-6, 1e-6, 1.0)
"""Smallest promise of a float32 graph on a CPU: that of a graph of which float32 itself costs less than a quarter."""

_ERROR = 2.0
"""Promise on the error of a lower precision, as a multiple of what was measured at export: kernels differ."""


@dataclass(frozen=True)
class _Range:
    """Limits of what a lower precision promises on the golden vectors, whatever was measured."""

    max_abs: tuple[float, float]
    mean_abs: tuple[float, float]
    min_cosine: tuple[float, float]
    """The tightest promise, then the loosest, as of the others."""


_RANGES = {
    "fp16": _Range((2e-3, 5e-2), (2e-4, 5e-3), (0.99999, 0.99)),
    "bf16": _Range((1e-2, 2e-1), (2e-3, 2e-2), (0.9995, 0.95)),
    "int8": _Range((1e-2, 3e-1), (2e-3, 5e-2), (0.9995, 0.9)),
}
"""Precision to its range. Half a dozen golden items are degenerate, and the worst of them says little about the rest:
what a precision costs is judged by the quality gate, and a promise is there to notice that something else is run."""


def promise_of(precision: str, tolerance: Tolerance, found: Sequence[OutputDifference]) -> Tolerance:
    """Promise for the golden vectors of a lower precision: twice the error measured at export, within limits.

    A cosine's distance from 1 grows with the square of the error, so four times that.

    Args:
        tolerance: the precision's of `TOLERANCES`, of which prefixes and rows are kept.
        found: the differences, of every modality and k.
    """
    limits = _RANGES[precision]
    tightest = {
        name: getattr(limits, name)[0] for name in ("max_abs", "mean_abs") if getattr(tolerance, name) is not None
    }
    promise = dataclasses.replace(tolerance, **tightest, min_cosine=limits.min_cosine[0])
    for difference in found:
        promise = loosened(precision, promise, difference)
    return promise


def loosened(precision: str, promise: Tolerance, found: OutputDifference) -> Tolerance:
    """Loosen a lower precision's promise, if a difference needs it and as far as the precision's limits."""
    limits = _RANGES[precision]
    bounds = {
        name: max(getattr(promise, name), min(_ERROR * getattr(found, name), getattr(limits, name)[1]))
        for name in ("max_abs", "mean_abs")
        if getattr(promise, name) is not None
    }
    cosine = max(1 - _ERROR**2 * (1 - found.min_cosine), limits.min_cosine[1])
    return dataclasses.replace(promise, **bounds, min_cosine=min(promise.min_cosine, cosine))


@dataclass(frozen=True)
class OutputDifference:
    """Differences of outputs from the expected ones, named as in `Tolerance`. NaN counts as infinite."""

    max_abs: float
    mean_abs: float
    min_cosine: float
    tokens: float | None = None
    prefix: float | None = None
    rows: float | None = None
    top1: float | None = None

    def violations(self, tolerance: Tolerance) -> list[str]:
        """One phrase for each bound that is exceeded."""
        phrases = []
        for name in ("max_abs", "mean_abs", "tokens", "prefix", "rows"):
            value, allowed = getattr(self, name), getattr(tolerance, name)
            if value is not None and allowed is not None and not value <= allowed:
                phrases.append(f"{name} is {value:.1e} and not at most {allowed:.0e}")
        for name in ("min_cosine", "top1"):
            value, allowed = getattr(self, name), getattr(tolerance, name)
            if value is not None and allowed is not None and not value >= allowed:
                phrases.append(f"{name} is {value:.6f} and not at least {allowed:g}")
        return phrases


def largest(difference: NDArray[Any]) -> float:
    """Largest magnitude; infinite if there is NaN, 0 of an empty array."""
    if not difference.size:
        return 0.0
    value = float(np.abs(difference).max())
    return value if np.isfinite(value) else float("inf")


def embedding_difference(found: NDArray[Any], expected: NDArray[Any]) -> OutputDifference:
    """Compare embeddings (..., D), in float64.

    A row that is 0 on both sides, as an empty input gives, is equal: cosine 1.
    """
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    apart = found - expected
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(norms > 0, (found * expected).sum(axis=-1) / norms, np.where(apart.any(axis=-1), -1.0, 1.0))
    worst = largest(apart)
    mean = float(np.abs(apart).mean()) if np.isfinite(worst) and apart.size else worst
    return OutputDifference(worst, mean, float(cosines.min()) if np.isfinite(worst) and cosines.size else -1.0)


def token_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference of tokens, relative to max(1, the largest expected magnitude)."""
    return largest(found - expected) / max(1.0, largest(expected))


def top1_agreement(found_BD: NDArray[Any], expected_BD: NDArray[Any], ties: float = TIES) -> float:
    """Share of items (B, D) whose nearest other item is the same in both.

    An item that is as near as the nearest by ``expected``, within ``ties``, counts as the same: it may be identical.
    """
    if len(expected_BD) < 2:
        return 1.0
    return nearest_agreement(found_BD, found_BD, expected_BD, expected_BD, ties, leave_self_out=True)


@dataclass(frozen=True)
class Neighbors:
    """Nearest gallery items of queries, compared between two implementations."""

    queries: int
    separated: int
    """Queries whose first item is further ahead of the second than ``margin`` by the expected scores."""
    moved: int
    """Queries among them whose nearest item is another by the found scores."""


def moved_neighbors(
    found_queries: NDArray[Any],
    found_gallery: NDArray[Any],
    expected_queries: NDArray[Any],
    expected_gallery: NDArray[Any],
    margin: float,
) -> Neighbors:
    """Count the queries whose nearest gallery item changes, among those that the expected scores tell apart.

    Args:
        found_queries: (Q, D), as ``expected_queries``; galleries are (B, D). Compared by dot product.
        margin: lead of the first item over the second above which a query counts.
    """
    separated = moved = 0
    for start in range(0, len(expected_queries), 1024):
        rows = slice(start, start + 1024)
        scores = expected_queries[rows].astype(np.float64) @ expected_gallery.T.astype(np.float64)
        guesses = np.nan_to_num(found_queries[rows] @ found_gallery.T, nan=-np.inf)
        if scores.shape[1] < 2:
            lead = np.full(len(scores), np.inf)
        else:
            second, first = np.partition(scores, -2, axis=1)[:, -2:].T
            lead = first - second
        apart = lead > margin
        # A score that is no number finds nothing.
        other = (guesses.argmax(axis=1) != scores.argmax(axis=1)) | ~np.isfinite(guesses.max(axis=1))
        separated += int(apart.sum())
        moved += int((apart & other).sum())
    return Neighbors(len(expected_queries), separated, moved)


def nearest_agreement(
    found_queries: NDArray[Any],
    found_gallery: NDArray[Any],
    expected_queries: NDArray[Any],
    expected_gallery: NDArray[Any],
    ties: float = TIES,
    leave_self_out: bool = False,
) -> float:
    """Share of queries whose nearest gallery item is the same in both; see `top1_agreement` about ties.

    Args:
        found_queries: (Q, D), as ``expected_queries``; galleries are (B, D). Compared by dot product.
        leave_self_out: whether queries and gallery are the same items, of which each skips itself.
    """
    same = 0
    for start in range(0, len(expected_queries), 1024):
        rows = slice(start, start + 1024)
        scores = expected_queries[rows] @ expected_gallery.T
        guesses = np.nan_to_num(found_queries[rows] @ found_gallery.T, nan=-np.inf)
        if leave_self_out:
            own = np.arange(start, start + len(scores))
            scores[np.arange(len(scores)), own] = guesses[np.arange(len(scores)), own] = -np.inf
        chosen = guesses.argmax(axis=1)
        right = scores[np.arange(len(scores)), chosen] >= scores.max(axis=1) - ties
        same += int((right & np.isfinite(guesses.max(axis=1))).sum())
    return same / max(1, len(expected_queries))
