"""Eager PyTorch and the exported graph are one model, for every modality, k, batch and length."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fluxtalk.arrays import Arrays
from fluxtalk.datasets import PairDataset
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from tests.conftest import Made

MODALITIES = ("image", "text")


def batch_of(made: Made, data: PairDataset, modality: str, count: int, padding: int = 0) -> Arrays:
    preprocess = made.run.stage1.modalities[modality].preprocess
    values = data.split("train").items[modality].values
    batch = preprocess.collate([preprocess.prepare(values[i]) for i in range(count)])
    if padding and "mask" in batch:
        batch = {name: np.pad(array, [(0, 0), (0, padding)]) for name, array in batch.items()}
    return batch


def graph(made: Made, modality: str, batch: Arrays, k: int) -> dict[str, NDArray[np.float32]]:
    session = OnnxRuntimeSession(made.bundle.graph(modality))
    return session.run(batch, k)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(("count", "padding"), [(1, 0), (2, 0), (7, 0), (7, 5), (33, 0)])
def test_graph_equals_eager(made: Made, table_data: PairDataset, modality: str, count: int, padding: int) -> None:
    batch = batch_of(made, table_data, modality, count, padding)
    embedder = made.run.embedder(modality)
    for k in range(1, 5):
        tokens, embeddings = embedder.embed_arrays(batch, k)
        found = graph(made, modality, batch, k)
        assert found["embeddings"].shape == (count, k, 48)
        assert np.abs(found["embeddings"] - embeddings).max() <= 1e-6
        assert np.abs(found["tokens"] - tokens).max() <= 1e-5 * max(1.0, np.abs(tokens).max())
        np.testing.assert_allclose(np.linalg.norm(found["embeddings"], axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("modality", MODALITIES)
def test_prefixes_rows_and_padding_in_the_graph(made: Made, table_data: PairDataset, modality: str) -> None:
    batch = batch_of(made, table_data, modality, 5)
    whole = graph(made, modality, batch, 4)
    for k in range(1, 5):
        prefix = graph(made, modality, batch, k)
        for name in ("tokens", "embeddings"):
            assert np.abs(prefix[name] - whole[name][:, :k]).max() <= 1e-6
    for row in range(5):
        alone = graph(made, modality, {name: array[row : row + 1] for name, array in batch.items()}, 4)
        assert np.abs(alone["embeddings"] - whole["embeddings"][row]).max() <= 1e-6
    if modality == "text":
        garbage = batch_of(made, table_data, modality, 5, padding=6)
        garbage["input_ids"][~garbage["mask"]] = 17
        padded = graph(made, modality, garbage, 4)
        assert np.abs(padded["embeddings"] - whole["embeddings"]).max() <= 1e-6
        # The check can fail: the same ids unmasked do move the embedding.
        garbage["mask"][:] = True
        assert np.abs(graph(made, modality, garbage, 4)["embeddings"] - whole["embeddings"]).max() > 1e-4


@pytest.mark.parametrize("modality", MODALITIES)
def test_pooled_embedding_averages_overlapping_tokens_alone(made: Made, table_data: PairDataset, modality: str) -> None:
    found = graph(made, modality, batch_of(made, table_data, modality, 4), 4)
    for k in range(1, 5):
        mean = found["tokens"][:, : min(k, 3)].mean(axis=1)
        expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
        assert np.abs(found["embeddings"][:, k - 1] - expected).max() <= 1e-6
    assert np.array_equal(found["embeddings"][:, 2], found["embeddings"][:, 3]) or np.allclose(
        found["embeddings"][:, 2], found["embeddings"][:, 3], atol=1e-6
    )
