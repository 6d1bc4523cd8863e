"""Tests that need a GPU: collected everywhere, skipped with the reason without one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxtalk.datasets import PairDataset
from fluxtalk.model.checkpoints.trained_run import open_run
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_cuda_embeds_like_the_cpu(
    train_config: TrainConfig, table_data: PairDataset, tmp_path: Path, precision: str
) -> None:
    config = dataclasses.replace(train_config, output_dir=str(tmp_path), device="cuda", precision=precision)
    assert fit(config).finished
    results = json.loads((tmp_path / config.log_name / "results.json").read_text())
    assert results["recall"]["text->image"]["4"]["10"] >= 0
    run = open_run(tmp_path / config.log_name)
    texts = list(table_data.split("test").items["text"].values)
    preprocess = run.stage1.modalities["text"].preprocess
    _, on_cpu = run.embedder("text").embed(preprocess, texts)
    _, on_gpu = run.embedder("text").cuda().embed(preprocess, texts)  # type: ignore[operator]
    assert np.abs(on_cpu - on_gpu).max() < 1e-3
