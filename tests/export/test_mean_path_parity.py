"""The exported graph of a head with a mean path against eager PyTorch, at every k."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fluxtalk.export.graph.to_onnx import export_onnx, graph_files
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import EncoderSpec, FrozenEncoder, build_encoder
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession

DIM, TOKENS, WIDTH = 12, 4, 8


@pytest.mark.parametrize(
    ("mean_path", "output", "heads", "summed", "regions"),
    [("mlp", "per_register", 4, 0, ""), ("linear", "shared", 8, 1, ""), ("mlp", "shared", 4, 1, "sound=1+2x3")],
    ids=["absorbed and summed up", "plain", "regions"],
)
def test_every_k_agrees_with_eager(
    mean_path: str, output: str, heads: int, summed: int, regions: str, tmp_path: Path
) -> None:
    preprocess, spec = FeaturesPreprocessor(DIM), EncoderSpec(f"features:{DIM}", {}, DIM)
    encoder = FrozenEncoder(build_encoder(spec.source, spec.options), preprocess, spec.dim)
    head = RegisterTokenModule(
        {"sound": DIM}, dim=32, heads=heads, num_overlapping_tokens=TOKENS, aggregation="concat", token_dim=WIDTH,
        mean_path=mean_path, output_projection=output, summary_registers=summed, regions=regions,
    )  # fmt: skip
    embedder = EagerEmbedder(encoder, head, "sound")
    sample = preprocess.collate([np.ones((3, DIM), np.float32), np.ones((2, DIM), np.float32)])
    graph_files(export_onnx(embedder, preprocess, sample), tmp_path, "sound.onnx")
    session = OnnxRuntimeSession(tmp_path / "sound.onnx")
    rng = np.random.default_rng(0)
    for rows, length, kept in ((1, 1, 1.0), (3, 7, 0.5), (2, 20, 0.0)):
        features = rng.standard_normal((rows, length, DIM)).astype(np.float32)
        mask = rng.random((rows, length)) < kept
        features[~mask] = np.nan
        for k in range(1, TOKENS + 1):
            batch = {"features": features, "mask": mask}
            tokens, embeddings = embedder.embed_arrays(batch, k)
            found = session.run(batch, k)
            assert found["tokens"].shape == (rows, k, WIDTH)
            assert np.abs(found["embeddings"] - embeddings).max() <= 1e-6
            assert np.abs(found["tokens"] - tokens).max() <= 1e-5 * max(1.0, np.abs(tokens).max())
