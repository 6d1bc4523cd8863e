"""Half precision of attention whose mask is boolean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import OUTPUTS, TOKEN_INDEX
from fluxtalk.export.graph.graph_tools import run_model
from fluxtalk.export.precision.half import emulate_half, to_half
from fluxtalk.scoring.parity import TOLERANCES, embedding_difference
from tests.export.to_tensorrt.trt_bundles import WORDS, embedder_of, graph_of, kinds


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_an_encoder_of_boolean_masks_keeps_its_tier_against_eager(kind: str) -> None:
    rng = np.random.default_rng(0)
    mask = np.arange(9) < rng.integers(1, 10, (8, 1))
    mask[3] = False
    arrays: Arrays = {"input_ids": rng.integers(0, len(WORDS), (8, 9)), "mask": mask}
    with torch.no_grad():
        expected = embedder_of("masked", kinds()["masked"]).embed_arrays(arrays, 4)[1]
    graph = graph_of("masked", kinds()["masked"])
    half = to_half(graph, kind) if kind == "fp16" else emulate_half(graph, kind)
    found = dict(zip(OUTPUTS, run_model(half, {**arrays, TOKEN_INDEX: np.arange(4)}), strict=True))["embeddings"]
    assert np.isfinite(found).all()
    assert not embedding_difference(found, expected).violations(TOLERANCES[kind])
