"""A run whose embeddings are good enough to lose quality."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fluxtalk.model.checkpoints.trained_run import TrainedRun, open_run
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit

STAGE1 = Path(__file__).parents[2] / "bench" / "stage1" / "glyphs.pth"


@pytest.fixture(scope="session")
def trained_run(train_config: TrainConfig, table_path: Path) -> TrainedRun:
    """The committed encoders, and a head trained on the table until it retrieves."""
    config = dataclasses.replace(
        train_config,
        stage1_checkpoint=str(STAGE1),
        data=str(table_path),
        log_name="trained",
        dim=64,
        batch_size=96,
        epochs=60,
        eval_every=60,
    )
    assert fit(config).finished
    return open_run(Path(config.output_dir) / config.log_name)
