"""The largest differences over several batches of golden vectors, attention among them.

Shapes: B items, K tokens, D dimension, L features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.scoring.parity import Difference, Tolerance, embedding_difference, largest, token_difference
from fluxtalk.tokens import ATTENTION

_SUM = 1e-2
"""What rounding each of many weights to half precision may do to their sum; a sum that was scaled is further off."""


@dataclass(frozen=True)
class AttentionDifference:
    """How far attention is from what was expected of it; NaN is infinitely far."""

    max_abs: float
    """Largest absolute difference of a weight."""
    sums: float
    """Largest distance of a row's sum from 1, over the items that have a feature."""

    def broken(self, tolerance: Tolerance) -> list[str]:
        """One phrase for each promise that does not hold."""
        allowed = attention_tolerance(tolerance)
        return [
            f"{name} is {value:.1e} and not at most {limit:.0e}"
            for name, value, limit in (
                ("attention", self.max_abs, allowed),
                ("attention rows' distance from a sum of 1", self.sums, min(allowed, _SUM)),
            )
            if not value <= limit
        ]


def attention_tolerance(tolerance: Tolerance) -> float:
    """How far a weight may be: as far as a token's number, else an embedding's.

    Weights lie in 0..1, so the promise on tokens, relative to max(1, the largest), is absolute here. Where only a
    cosine c is promised, two vectors of length 1 are apart by at most sqrt(2 - 2c), and so is each of their numbers.
    """
    for promised in (tolerance.attention, tolerance.tokens, tolerance.max_abs):
        if promised is not None:
            return promised
    return math.sqrt(2 * max(0.0, 1 - tolerance.min_cosine))


class Worst:
    """The largest differences of the batches that were added, all with the same k."""

    def __init__(self) -> None:
        self.difference = Difference(0.0, 0.0, 1.0, tokens=0.0)
        self.attention: AttentionDifference | None = None
        self.cases = 0

    def add(
        self,
        batch: Mapping[str, NDArray[Any]],
        found: Mapping[str, NDArray[Any]],
        expected: Mapping[str, NDArray[Any]],
    ) -> None:
        """Compare one batch.

        Args:
            batch: what was run; its ``mask`` (B, length), where there is one, tells which items have a feature.
            found: ``tokens`` and ``embeddings`` (B, K, D), and ``attention`` (B, K, L) where it is expected.
        """
        other, worst = embedding_difference(found["embeddings"], expected["embeddings"]), self.difference
        self.difference = replace(
            worst,
            max_abs=max(worst.max_abs, other.max_abs),
            mean_abs=max(worst.mean_abs, other.mean_abs),
            min_cosine=min(worst.min_cosine, other.min_cosine),
            tokens=max(worst.tokens or 0.0, token_difference(found["tokens"], expected["tokens"])),
        )
        self.cases += 1
        if ATTENTION in expected:
            there = batch["mask"].any(axis=1) if "mask" in batch else slice(None)
            now = _attention_difference(found[ATTENTION][there], expected[ATTENTION][there])
            before = self.attention or AttentionDifference(0.0, 0.0)
            self.attention = AttentionDifference(max(before.max_abs, now.max_abs), max(before.sums, now.sums))


def _attention_difference(found_BKL: NDArray[Any], expected_BKL: NDArray[Any]) -> AttentionDifference:
    """Of items that have a feature; those that were padded to different lengths look at no padding."""
    length = max(found_BKL.shape[2], expected_BKL.shape[2])
    padded = [
        np.pad(array.astype(np.float64), [(0, 0), (0, 0), (0, length - array.shape[2])])
        for array in (found_BKL, expected_BKL)
    ]
    return AttentionDifference(largest(padded[0] - padded[1]), largest(found_BKL.sum(axis=2, dtype=np.float64) - 1))
