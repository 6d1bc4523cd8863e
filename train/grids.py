"""The grids of features: which modalities have the same places in every item, and whether a named grid fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping

import numpy as np

from fluxtalk.artifacts.run import RunFolder, read_description
from fluxtalk.config import Grid, read_grids
from fluxtalk.errors import UsageError
from fluxtalk.train.config import AUTO, TrainConfig
from fluxtalk.train.features.sources import FeatureSource

_LOOKED_AT = 64
"""Items of a modality whose features are counted, spread over the training split."""
_FEWEST = 4
"""Fewer features than this are no grid."""
_BEFORE = (0, 1, 5)
"""Features before a square grid: none, a class token, or one and four register tokens."""


def with_recorded_grids(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """Give a run that goes on the grids that were found when it began."""
    if config.regions != AUTO or not folder.description.is_file():
        return config
    return dataclasses.replace(config, regions=read_description(folder.root).options["regions"])


def with_grids(
    config: TrainConfig, sources: Mapping[str, FeatureSource], images: Collection[str], say: Callable[[str], None]
) -> TrainConfig:
    """Find the grids of ``--regions auto``, or check those that are named.

    Args:
        sources: modality to the features of the training split.
        images: modalities that are images, whose grids are squares.
        say: receives a line about grids that were found.

    Raises:
        UsageError: none is found, or features have more places than the grid that is named for them.
    """
    if not config.regions:
        return config
    counts = {modality: _counts(source) for modality, source in sources.items()}
    if config.regions == AUTO:
        if config.feature_pool > 1:
            raise UsageError(
                "--regions auto knows the places of features as encoders give them, and --feature-pool "
                f"{config.feature_pool} joins some; name the grids that are left, as --regions image=16x4."
            )
        grids = {modality: _grid(*counts[modality], modality in images) for modality in sources}
        found = ",".join(f"{modality}={grid}" for modality, grid in grids.items() if grid is not None)
        if not found:
            raise UsageError(
                f"--regions auto needs a modality whose items all have the same number of features, at least "
                f"{_FEWEST}, and {', '.join(sources)} have none; name a grid, as --regions image=7x7, or choose "
                "another --recipe."
            )
        say(f"regions: {found}")
        return dataclasses.replace(config, regions=found)
    for modality, grid in read_grids(config.regions).items():
        most = counts[modality][1] if modality in counts else 0
        if most > grid.places:
            raise UsageError(
                f"--regions {modality}={grid} has {grid.places} places, and items of {modality} have up to {most} "
                "features; name their grid, as 1+14x14 for 197 features behind a class token."
            )
    return config


def _counts(source: FeatureSource) -> tuple[int, int]:
    """Count the features of items that have any: the fewest and the most; 0 if there is no such item."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).astype(np.int64))
    counts = source.batch(rows).mask_BL.sum(dim=1)
    counts = counts[counts > 0]
    return (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)


def _grid(fewest: int, most: int, is_image: bool) -> Grid | None:
    if fewest != most or most < _FEWEST:
        return None
    for before in _BEFORE if is_image else ():
        side = math.isqrt(max(0, most - before))
        if side > 1 and side * side == most - before:
            return Grid(side, side, before)
    return Grid(1, most)
