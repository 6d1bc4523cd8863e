"""Grids of features: found by a run, kept by its record, and held against what is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fluxtalk.artifacts.run import read_description
from fluxtalk.config import read_grids
from fluxtalk.errors import UsageError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.encoders.base import Features
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.train.config import RECIPES, TrainConfig
from fluxtalk.train.grids import with_grids
from fluxtalk.train.loop.optimizer_step import adamw
from fluxtalk.train.run import fit

CONFIG = TrainConfig("a", "b", "c", mean_path="mlp", regions="auto")


class _Source:
    """Items of these numbers of features."""

    dim = 3

    def __init__(self, *counts: int) -> None:
        self._counts = torch.tensor(counts)

    def __len__(self) -> int:
        return len(self._counts)

    def batch(self, rows: np.ndarray[Any, Any]) -> Features:
        counts = self._counts[torch.from_numpy(rows)]
        mask = torch.arange(int(counts.max())) < counts[:, None]
        return Features(torch.zeros(*mask.shape, 3), mask)


def found(sources: dict[str, _Source], images: set[str]) -> str:
    said: list[str] = []
    regions = with_grids(CONFIG, sources, images, said.append).regions
    assert said == [f"regions: {regions}"]
    return regions


@pytest.mark.parametrize(
    ("count", "grid"), [(49, "7x7"), (197, "1+14x14"), (261, "5+16x16"), (4, "2x2"), (5, "1+2x2"), (12, "1x12")]
)
def test_a_number_of_features_that_never_changes_is_a_grid(count: int, grid: str) -> None:
    """An item without any feature says nothing; what is no image has one row."""
    sources = {"image": _Source(count, 0, count), "text": _Source(5, 9, 4), "name": _Source(1, 1)}
    assert found(sources, {"image"}) == f"image={grid}"
    assert read_grids(f"image={grid}")["image"].places == count
    assert found(sources, set()) == f"image=1x{count}"


def test_a_table_sorted_by_length_has_no_grid() -> None:
    with pytest.raises(UsageError, match="text, tags have none; name a grid, as --regions image=7x7, or choose"):
        found({"text": _Source(*[7] * 900, *[20] * 100), "tags": _Source(3, 3)}, set())


def test_grids_of_pooled_features_are_named() -> None:
    pooled = dataclasses.replace(CONFIG, feature_pool=2)
    with pytest.raises(UsageError, match="--feature-pool 2 joins some; name the grids"):
        with_grids(pooled, {"image": _Source(98)}, {"image"}, print)


def test_a_named_grid_has_a_place_for_every_feature() -> None:
    """Fewer features are an album that is not full; more would all count as much as the middle of a window."""
    named = dataclasses.replace(CONFIG, regions="image=7x7")
    assert with_grids(named, {"image": _Source(49, 14)}, {"image"}, print) is named
    with pytest.raises(UsageError, match="image=7x7 has 49 places, and items of image have up to 197 features"):
        with_grids(named, {"image": _Source(197, 197)}, {"image"}, print)


def test_a_run_records_its_grids_and_goes_on_with_them(train_config: TrainConfig, tmp_path: Path) -> None:
    asked = TrainConfig.with_recipe(
        "regions",
        **{
            name: getattr(train_config, name)
            for name in ("stage1_checkpoint", "log_name", "cache_dir", "batch_size", "dim", "data")
        },
        output_dir=str(tmp_path),
        epochs=1,
        heads=4,
    )
    folder = fit(asked).folder
    assert read_description(folder.root).options["regions"] == "image=4x4"
    assert load_head(folder.best).config.regions == "image=4x4"
    assert fit(asked, resume=True).finished
    after = dataclasses.replace(asked, init_from=str(folder.root), log_name="next")
    assert fit(after).finished
    with pytest.raises(UsageError, match="a head of another shape; give its --regions image=4x4"):
        fit(dataclasses.replace(after, regions="image=2x8", log_name="other"))


def test_places_do_not_decay() -> None:
    head = RegisterTokenModule({"image": 10}, dim=16, heads=2, mean_path="mlp", regions="image=3x3")
    decays = {
        name: group["weight_decay"]
        for group in adamw(head, CONFIG).param_groups
        for name, parameter in head.named_parameters()
        if any(parameter is one for one in group["params"])
    }
    assert decays.keys() == dict(head.named_parameters()).keys()
    assert decays["mean_path.image.regions.places"] == 0.0
    assert decays["mean_path.image.regions.query"] == CONFIG.weight_decay > 0
    assert RECIPES["regions"]["regions"] == "auto"
