"""Hypothesis chooses shapes, k and values: the exported graph against eager PyTorch, live."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxtalk.arrays import Arrays
from fluxtalk.export.graph.to_onnx import export_onnx, graph_files
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import EncoderSpec, FrozenEncoder, build_encoder
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from tests.conftest import Made

EXAMPLES = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def sessions(made: Made) -> dict[str, OnnxRuntimeSession]:
    return {m: OnnxRuntimeSession(made.bundle.graph(m)) for m in ("image", "text")}


@pytest.fixture(scope="module")
def embedders(made: Made) -> dict[str, EagerEmbedder]:
    return {m: made.run.embedder(m) for m in ("image", "text")}


def assert_parity(embedder: EagerEmbedder, session: OnnxRuntimeSession, batch: Arrays, k: int) -> None:
    tokens, embeddings = embedder.embed_arrays(batch, k)
    found = session.run(batch, k)
    assert np.isfinite(found["tokens"]).all()
    assert np.abs(found["embeddings"] - embeddings).max() <= 1e-6
    assert np.abs(found["tokens"] - tokens).max() <= 1e-5 * max(1.0, np.abs(tokens).max())


@EXAMPLES
@given(data=st.data(), rows=st.integers(1, 6), length=st.integers(1, 24), k=st.integers(1, 4))
def test_any_ids_and_mask(
    sessions: dict[str, OnnxRuntimeSession],
    embedders: dict[str, EagerEmbedder],
    data: st.DataObject,
    rows: int,
    length: int,
    k: int,
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    vocabulary = len(embedders["text"].encoder.encoder.get_parameter("token.weight"))
    batch = {
        "input_ids": rng.integers(0, vocabulary, (rows, length)),
        # Any mask: with holes, and rows that are nothing but padding.
        "mask": rng.random((rows, length)) < data.draw(st.sampled_from([0.0, 0.2, 0.8, 1.0])),
    }
    assert_parity(embedders["text"], sessions["text"], batch, k)


@EXAMPLES
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), low=st.integers(0, 255), k=st.integers(1, 4))
def test_any_pixels(
    sessions: dict[str, OnnxRuntimeSession], embedders: dict[str, EagerEmbedder], seed: int, rows: int, low: int, k: int
) -> None:
    pixels = np.random.default_rng(seed).integers(low, 256, (rows, 32, 32, 1), dtype=np.uint8)
    assert_parity(embedders["image"], sessions["image"], {"pixels": pixels}, k)


@pytest.fixture(scope="module")
def given_features(tmp_path_factory: pytest.TempPathFactory) -> tuple[EagerEmbedder, OnnxRuntimeSession]:
    preprocess = FeaturesPreprocessor(12)
    spec = EncoderSpec("features:12", {}, 12)
    encoder = FrozenEncoder(build_encoder(spec.source, spec.options), preprocess, spec.dim)
    embedder = EagerEmbedder(encoder, RegisterTokenModule({"sound": 12}, dim=32, heads=4), "sound")
    sample = preprocess.collate([np.ones((3, 12), np.float32), np.ones((2, 12), np.float32)])
    folder: Path = tmp_path_factory.mktemp("features")
    graph_files(export_onnx(embedder, preprocess, sample), folder, "sound.onnx")
    return embedder, OnnxRuntimeSession(folder / "sound.onnx")


@EXAMPLES
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    length=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    kept=st.sampled_from([0.0, 0.5, 1.0]),
    k=st.integers(1, 4),
)
def test_any_features(
    given_features: tuple[EagerEmbedder, OnnxRuntimeSession],
    seed: int,
    rows: int,
    length: int,
    scale: float,
    kept: float,
    k: int,
) -> None:
    rng = np.random.default_rng(seed)
    features = (scale * rng.standard_normal((rows, length, 12))).astype(np.float32)
    mask = rng.random((rows, length)) < kept
    # What padding holds must not matter, whatever it is.
    features[~mask] = np.nan
    assert_parity(*given_features, {"features": features, "mask": mask}, k)
