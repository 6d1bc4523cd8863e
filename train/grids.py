"""The grids of features: which modalities have the same places in every item."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fluxtalk.config import Grid
from fluxtalk.errors import UsageError
from fluxtalk.train.features.sources import FeatureSource

_LOOKED_AT = 32
_FEWEST = 4
"""Fewer features than this are no grid."""
_BEFORE = (0, 1, 5)
"""Features before a square grid: none, a class token, or one and four register tokens."""


def found_grids(sources: Mapping[str, FeatureSource]) -> str:
    """Find the modalities whose first items all have as many features, and write their grids as `--regions` has them.

    A number that is a square, or one behind a class token, is taken for a square grid; others for one row.

    Raises:
        UsageError: no modality has such features.
    """
    grids = {modality: _grid(source) for modality, source in sources.items()}
    named = ",".join(f"{modality}={grid}" for modality, grid in grids.items() if grid is not None)
    if not named:
        raise UsageError(
            "--regions auto needs a modality whose items all have the same number of features, at least "
            f"{_FEWEST}; {', '.join(sources)} have none: leave --regions out."
        )
    return named


def _grid(source: FeatureSource) -> Grid | None:
    mask = source.batch(np.arange(min(_LOOKED_AT, len(source)))).mask_BL
    count = mask.shape[1]
    if count < _FEWEST or not bool(mask.all()):
        return None
    for before in _BEFORE:
        side = math.isqrt(count - before) if count > before else 0
        if side > 1 and side * side == count - before:
            return Grid(side, side, before)
    return Grid(1, count)
