"""Bundles with more than the shared one has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.datasets import PairDataset
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.checkpoints.trained_run import open_run
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit
from tests.conftest import Made


@pytest.fixture(scope="session")
def side_by_side(train_config: TrainConfig, table_data: PairDataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The shared run's twin, trained with `concat` and at 12 and 24 of a token's 48 numbers too."""
    config = dataclasses.replace(
        train_config,
        log_name="side-by-side",
        aggregation="concat",
        output_projection="per_register",
        nested_dims="12,24",
    )
    assert fit(config).finished
    trained = open_run(Path(config.output_dir) / config.log_name)
    return Made(trained, write_bundle(trained, table_data, tmp_path_factory.mktemp("side-by-side") / "bundle"))


@pytest.fixture(scope="session")
def attentive(made: Made, table_data: PairDataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shared bundle's twin, with the output ``attention``, in two precisions."""
    options = ExportOptions(("fp32", "fp16"), attention=True)
    return write_bundle(made.run, table_data, tmp_path_factory.mktemp("attentive") / "bundle", options)
