"""Largest differences over several batches, attention included.

Shapes: B items, K tokens, D dimension, L features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.scoring.parity import OutputDifference, Tolerance, embedding_difference, largest, token_difference
from fluxtalk.tokens import ATTENTION

_MAX_SUM_ERROR = 1e-2
"""Bound on a sum of weights, which rounding each of them to half precision moves less than a wrong scale does."""


@dataclass(frozen=True)
class AttentionDifference:
    """Differences of attention weights from the expected ones. NaN counts as infinite."""

    max_abs: float
    """Largest absolute difference of a weight."""
    sums: float
    """Largest distance of a row's sum from 1, over items that have a feature."""

    def violations(self, tolerance: Tolerance) -> list[str]:
        """One phrase for each bound that is exceeded."""
        allowed = attention_tolerance(tolerance)
        return [
            f"{name} is {value:.1e} and not at most {limit:.0e}"
            for name, value, limit in (
                ("attention", self.max_abs, allowed),
                ("attention rows' distance from a sum of 1", self.sums, min(allowed, _MAX_SUM_ERROR)),
            )
            if not value <= limit
        ]


def attention_tolerance(tolerance: Tolerance) -> float:
    """Largest difference of an attention weight: that of a token's element, else of an embedding's.

    Weights are in 0..1, so the bound on tokens, relative to max(1, the largest), is absolute here. If only a cosine c
    is bounded, two vectors of length 1 differ by at most sqrt(2 - 2c), and so does each of their elements.
    """
    for bound in (tolerance.attention, tolerance.tokens, tolerance.max_abs):
        if bound is not None:
            return bound
    return math.sqrt(2 * max(0.0, 1 - tolerance.min_cosine))


class ParityAccumulator:
    """Largest differences over the batches that were added, all with the same k."""

    def __init__(self) -> None:
        self.difference = OutputDifference(0.0, 0.0, 1.0, tokens=0.0)
        self.attention: AttentionDifference | None = None
        """None until a batch with expected attention is added."""
        self.cases = 0
        """Batches added."""

    def add(
        self,
        batch: Mapping[str, NDArray[Any]],
        found: Mapping[str, NDArray[Any]],
        expected: Mapping[str, NDArray[Any]],
    ) -> None:
        """Compare one batch and keep the largest differences.

        Args:
            batch: inputs of the run; ``mask`` (B, length), if there is one, tells which items have a feature.
            found: ``tokens`` and ``embeddings`` (B, K, D), and ``attention`` (B, K, L) if it is expected.
            expected: the same arrays of eager PyTorch.
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
    """Compare the attention of items that have a feature; lengths may differ, because padding has no weight."""
    length = max(found_BKL.shape[2], expected_BKL.shape[2])
    padded = [
        np.pad(array.astype(np.float64), [(0, 0), (0, 0), (0, length - array.shape[2])])
        for array in (found_BKL, expected_BKL)
    ]
    return AttentionDifference(largest(padded[0] - padded[1]), largest(found_BKL.sum(axis=2, dtype=np.float64) - 1))
