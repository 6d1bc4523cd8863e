"""Frozen encoder and head as one module: what is exported. And the runs it is opened from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxtalk.errors import ArtifactError, CheckpointError, TokenCountError, UsageError
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1, save_stage1
from fluxtalk.model.checkpoints.trained_run import TrainedRun, open_run
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import to_tensors
from fluxtalk.model.head.reduction import FeatureReduction, ReductionConfig
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit

TEXTS = ["letter", "black chess queen", "greek small letter omega with tonos", "sun"]


@pytest.fixture(scope="module")
def run(train_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run of one epoch, without a bundle."""
    config = dataclasses.replace(train_config, output_dir=str(tmp_path_factory.mktemp("run")), epochs=1)
    assert fit(config).finished
    return open_run(Path(config.output_dir) / config.log_name)


def _embedder(stage1: Stage1, modality: str) -> EagerEmbedder:
    torch.manual_seed(0)
    dims = {name: part.spec.dim for name, part in stage1.modalities.items()}
    head = RegisterTokenModule(dims, dim=32, heads=4, nested_dropout_rate=0.7, dropout=0.5)
    return EagerEmbedder(stage1.modalities[modality].build(), head.train(), modality)


def test_a_text_embeds_alone_as_in_a_batch(stage1: Stage1) -> None:
    """Contract 4 from raw input on: the encoder's padding does not reach a row either."""
    embedder, preprocess = _embedder(stage1, "text"), stage1.modalities["text"].preprocess
    tokens, embeddings = embedder.embed(preprocess, TEXTS)
    assert tokens.shape == embeddings.shape == (4, 4, 32)
    for row, text in enumerate(TEXTS):
        alone_tokens, alone_embeddings = embedder.embed(preprocess, [text])
        assert np.abs(tokens[row] - alone_tokens[0]).max() <= 1e-5 * max(1, np.abs(tokens).max())
        assert np.abs(embeddings[row] - alone_embeddings[0]).max() <= 1e-5
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3


@pytest.mark.parametrize("modality", ["image", "text"])
def test_every_k_is_a_prefix(stage1: Stage1, modality: str) -> None:
    """Contracts 1 to 3: no random part, and embeddings of every prefix at once."""
    embedder, preprocess = _embedder(stage1, modality), stage1.modalities[modality].preprocess
    items = TEXTS if modality == "text" else [np.full((32, 32), 60 * i, np.uint8) for i in range(4)]
    tokens, embeddings = embedder.embed(preprocess, items)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, atol=1e-5)
    for k in range(1, 5):
        some_tokens, some_embeddings = embedder.embed(preprocess, items, k=k)
        assert some_tokens.shape == (4, k, 32)
        np.testing.assert_allclose(some_tokens, tokens[:, :k], rtol=0, atol=2e-5)
        np.testing.assert_allclose(some_embeddings, embeddings[:, :k], rtol=0, atol=1e-5)
    np.testing.assert_allclose(embeddings[:, 3], embeddings[:, 2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [0, 5])
def test_k_out_of_range_is_refused(stage1: Stage1, k: int) -> None:
    with pytest.raises(TokenCountError, match="from 1 to 4"):
        _embedder(stage1, "text").embed(stage1.modalities["text"].preprocess, TEXTS, k=k)


def test_a_run_opens_with_its_best_head(run: TrainedRun) -> None:
    assert run.head.stage1_hash == run.stage1.content_hash()
    assert run.results is not None
    assert run.results["best"] == run.head.progress
    embedder = run.embedder("text")
    assert not embedder.training
    with pytest.raises(UsageError, match="modalities image, text; got 'audio'"):
        run.embedder("audio")


def test_a_run_embeds_with_the_reduction_of_its_training(run: TrainedRun) -> None:
    """Between encoder and head, for the modality that was trained with it alone."""
    pooled = FeatureReduction(ReductionConfig(run.stage1.modalities["text"].spec.dim, 2))
    reduced = dataclasses.replace(run, head=dataclasses.replace(run.head, reductions={"text": pooled}))
    preprocess = run.stage1.modalities["text"].preprocess
    tokens, _ = reduced.embedder("text").embed(preprocess, TEXTS)
    batch = preprocess.collate([preprocess.prepare(text) for text in TEXTS])
    with torch.inference_mode():
        features, mask = run.stage1.modalities["text"].build()(*to_tensors(batch))
        rows = [
            torch.stack([part[m].mean(dim=0) for part, m in zip(f.split(2), mask_.split(2), strict=True) if m.any()])
            for f, mask_ in zip(features, mask, strict=True)
        ]
        for row, vectors in enumerate(rows):
            alone = run.head.build().tokens("text", vectors[None], None, torch.arange(4))[0].numpy()
            assert np.abs(tokens[row] - alone).max() <= 1e-5 * max(1, np.abs(tokens).max())
    plain, _ = run.embedder("text").embed(preprocess, TEXTS)
    assert np.abs(plain - tokens).max() > 1e-3
    assert reduced.embedder("image").reduction.identity


def test_a_run_that_moved_finds_its_stage_1(run: TrainedRun, tmp_path: Path) -> None:
    """Named again, where the old path is gone; another stage 1 is refused."""
    root = shutil.copytree(run.root, tmp_path / "elsewhere" / "run")
    content = json.loads((root / "run.json").read_text())
    there = tmp_path / "mine.pth"
    shutil.copy(content["options"]["stage1_checkpoint"], there)
    content["options"]["stage1_checkpoint"] = content["facts"]["stage1_checkpoint"] = "/gone/stage1.pth"
    content["facts"]["stage1_relative"] = "gone/stage1.pth"
    (root / "run.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"is not at /gone/stage1\.pth any more"):
        open_run(root)
    assert open_run(root, there).head.stage1_hash == run.head.stage1_hash
    stage1 = load_stage1(there)
    text = stage1.modalities["text"]
    moved = dataclasses.replace(text, weights={k: v + 1 for k, v in text.weights.items()})
    save_stage1(dataclasses.replace(stage1, modalities={**stage1.modalities, "text": moved}), there)
    with pytest.raises(CheckpointError, match=r"mine\.pth is not the stage 1 checkpoint"):
        open_run(root, there)


def test_what_is_no_run_is_refused_by_name(run: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere is not a training run"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"run\.json is not valid JSON"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "other"}')
    with pytest.raises(ArtifactError, match="does not describe a FluxTalk run"):
        open_run(tmp_path)
    unfinished = shutil.copytree(run.root, tmp_path / "unfinished")
    (unfinished / "checkpoints" / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no best head yet"):
        open_run(unfinished)
