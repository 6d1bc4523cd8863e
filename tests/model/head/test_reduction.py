"""Pooling and PCA: against a slow reference and scikit-learn, eager and in the exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from fluxtalk.errors import DataError, UsageError
from fluxtalk.export.graph.to_onnx import export_onnx, graph_files
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import Features, FrozenEncoder, GivenFeatures
from fluxtalk.model.head.reduction import FeatureReduction, ReductionConfig, principal_components
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession

DIM = 10


def ragged(lengths: list[int], padding: float = 0.0, extra: int = 0, seed: int = 0) -> Features:
    """Random features of these lengths; what stands on padding is ``padding``."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths) + extra
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    values = torch.randn(len(lengths), longest, DIM, generator=generator)
    return Features(torch.where(mask[..., None], values, torch.tensor(padding)), mask)


def reduction(pool: int = 1, pca: int = 0) -> FeatureReduction:
    """A reduction whose PCA was fitted on correlated vectors with a mean."""
    if not pca:
        return FeatureReduction(ReductionConfig(DIM, pool))
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(200, DIM, generator=generator) @ torch.randn(DIM, DIM, generator=generator) + 3
    return FeatureReduction(ReductionConfig(DIM, pool, pca), *principal_components([vectors], pca))


def pooled_slowly(features: Features, size: int) -> list[list[NDArray[np.float32]]]:
    """Row by row and window by window, from what is there alone; a window without anything is left out."""
    rows = []
    for values, mask in zip(features.features_BLD.numpy(), features.mask_BL.numpy(), strict=True):
        windows = [(values[i : i + size], mask[i : i + size]) for i in range(0, len(mask), size)]
        rows.append([v[m].mean(axis=0) for v, m in windows if m.any()])
    return rows


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_pooling_averages_what_is_there(size: int) -> None:
    """Any length, a shorter last window, holes in the mask, and whatever stands on padding."""
    features = ragged([7, 1, 4, 6], padding=float("nan") if size > 1 else 0.0)
    features.mask_BL[3, 2] = False
    values, mask = reduction(size)(features)
    assert values.shape == (4, -(-7 // size), DIM)
    for row, expected in enumerate(pooled_slowly(features, size)):
        np.testing.assert_allclose(values[row][mask[row]].numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)
    if size > 1:
        assert (values[~mask] == 0).all()


def test_pca_is_scikit_learns() -> None:
    """Fed in batches of any size; up to each component's sign, which ours fixes."""
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((500, DIM)) @ rng.standard_normal((DIM, DIM)) + 5).astype(np.float32)
    mean, components = principal_components([torch.from_numpy(part) for part in np.split(vectors, [3, 250])], 4)
    theirs = PCA(4).fit(vectors)
    np.testing.assert_allclose(mean.numpy(), theirs.mean_, rtol=1e-5)
    np.testing.assert_allclose(np.abs(components.numpy() @ theirs.components_.T), np.eye(4), atol=1e-4)
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()
    features = Features(torch.from_numpy(vectors[None]), torch.ones(1, 500, dtype=torch.bool))
    projected = FeatureReduction(ReductionConfig(DIM, 1, 4), mean, components)(features).features_BLD[0].numpy()
    np.testing.assert_allclose(np.abs(projected), np.abs(theirs.transform(vectors)), rtol=1e-3, atol=1e-3)


def test_too_few_vectors_are_said() -> None:
    with pytest.raises(DataError, match="needs more than 4 feature vectors; the training split gave 4"):
        principal_components([torch.randn(3, DIM), torch.randn(1, DIM)], 4)


@pytest.mark.parametrize("pool", [1, 3])
def test_rows_do_not_depend_on_padding_or_neighbors(pool: int) -> None:
    """Contract 4, with PCA; a row without any feature stays finite, and empty."""
    lengths = [5, 2, 0]
    values, mask = reduction(pool, 4)(ragged(lengths, extra=4, padding=7.0))
    for row, length in enumerate(lengths[:2]):
        alone = ragged(lengths, extra=4)
        cut = Features(alone.features_BLD[row : row + 1, :length], alone.mask_BL[row : row + 1, :length])
        expected = reduction(pool, 4)(cut).features_BLD[0]
        torch.testing.assert_close(values[row][mask[row]], expected, rtol=1e-5, atol=1e-5)
    assert (values[~mask] == 0).all()
    assert not mask[2].any()


@pytest.mark.parametrize(("pool", "pca", "words"), [(0, 0, "1 feature vector or more"), (1, 11, "1 to 10 components")])
def test_impossible_reductions_are_refused(pool: int, pca: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ReductionConfig(DIM, pool, pca)


def test_the_hash_knows_configuration_and_numbers() -> None:
    other = reduction(2, 4)
    other.components[0, 0] += 1e-3
    hashes = [r.content_hash() for r in (reduction(), reduction(2), reduction(2, 4), reduction(1, 4), other)]
    assert len(set(hashes)) == 5
    assert reduction(2, 4).content_hash() == hashes[2]


def embedder(pool: int, pca: int) -> EagerEmbedder:
    """Given features, a reduction and a head of random weights."""
    torch.manual_seed(0)
    part = reduction(pool, pca)
    head = RegisterTokenModule({"sound": part.dim}, dim=16, heads=2)
    return EagerEmbedder(FrozenEncoder(GivenFeatures(), FeaturesPreprocessor(DIM), DIM), head, "sound", part)


def test_a_head_of_other_features_is_refused() -> None:
    whole = embedder(1, 0)
    with pytest.raises(
        UsageError, match=r"have dimension 10, reduced to 4; this head was trained on 10, reduced to 10"
    ):
        EagerEmbedder(whole.encoder, whole.head, "sound", reduction(2, 4))


@pytest.mark.parametrize(
    ("pool", "pca", "sample"),
    [
        (2, 4, 5),
        pytest.param(3, 0, 2, marks=pytest.mark.slow),
        pytest.param(1, 4, 2, marks=pytest.mark.slow),
    ],
)
def test_the_exported_graph_reduces_as_eager(tmp_path: Path, pool: int, pca: int, sample: int) -> None:
    """Every batch size and length, odd ones, padding and rows that are nothing else."""
    module, preprocess = embedder(pool, pca), FeaturesPreprocessor(DIM)
    values, mask = ragged([sample, sample - 1])
    graph = export_onnx(module, preprocess, {"features": values.numpy(), "mask": mask.numpy()})
    graph_files(graph, tmp_path, "sound.onnx")
    session = OnnxRuntimeSession(tmp_path / "sound.onnx")
    for lengths, extra in (([1], 0), ([2, 1], 0), ([7, 3, 4, 6, 5], 0), ([8, 0, 3], 3), ([33] * 3, 0)):
        features = ragged(lengths, padding=9.0, extra=extra, seed=len(lengths))
        batch = {"features": features.features_BLD.numpy(), "mask": features.mask_BL.numpy()}
        tokens, embeddings = module.embed_arrays(batch, 4)
        found = session.run(batch, 4)
        assert np.isfinite(found["tokens"]).all()
        assert np.abs(found["embeddings"] - embeddings).max() <= 1e-6
        assert np.abs(found["tokens"] - tokens).max() <= 1e-5 * max(1.0, np.abs(tokens).max())
    session.close()
