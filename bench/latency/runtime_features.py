"""A head over precomputed features as the runtime serves it, with random weights: for measuring, not for embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fluxtalk.artifacts.bundle import OUTPUTS, Bundle, Manifest, ModalityEntry, PrecisionEntry
from fluxtalk.export.graph.to_onnx import export_onnx, graph_files, input_specs
from fluxtalk.export.options import DEFAULT_OPSET
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import FrozenEncoder, GivenFeatures
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.runtime import Embedder
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.scoring.parity import TOLERANCES

MODALITY = "features"
_GRAPH = "features.fp32.onnx"


def features_embedder(
    folder: Path, feature_dim: int, dim: int = 512, heads: int = 8, threads: int | None = None
) -> Embedder:
    """A head of 4 tokens, its graph written to a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = RegisterTokenModule({MODALITY: feature_dim}, dim=dim, heads=heads)
    preprocess = FeaturesPreprocessor(feature_dim)
    eager = EagerEmbedder(FrozenEncoder(GivenFeatures(), preprocess, feature_dim), head, MODALITY)
    sample = preprocess.collate([np.zeros((3, feature_dim), np.float32)] * 2)
    graph = export_onnx(eager, preprocess, sample)
    graph_files(graph, folder, _GRAPH)
    config, _ = preprocess.to_parts()
    manifest = Manifest(
        num_register_tokens=head.config.num_register_tokens,
        num_overlapping_tokens=head.config.num_overlapping_tokens,
        trained_register_tokens=head.config.num_register_tokens,
        dim=dim,
        opset=DEFAULT_OPSET,
        outputs=[*OUTPUTS],
        precisions={"fp32": PrecisionEntry(TOLERANCES["fp32"])},
        modalities={MODALITY: ModalityEntry({"fp32": _GRAPH}, input_specs(graph), None, config, {})},
        files={},
        golden="",
        stage1_hash="",
        head_hash="",
        identity={},
    )
    session = OnnxRuntimeSession(folder / _GRAPH, threads=threads)
    return Embedder(Bundle(folder, manifest), {MODALITY: session}, "made by the benchmark")
