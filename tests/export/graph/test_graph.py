"""Contents of the exported graph: standard operators, dynamic shapes, no paths, no random node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fluxtalk.errors import UsageError
from fluxtalk.export.graph.to_onnx import export_onnx, graph_files
from fluxtalk.export.options import DEFAULT_OPSET
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import FrozenEncoder
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from tests.conftest import Made
from tests.export.to_tensorrt.trt_bundles import DEEP, embedder_of, graph_of, kinds

RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


def every_node(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [*nodes(model.graph), *(node for function in model.functions for node in function.node)]


@pytest.mark.parametrize("modality", ["image", "text"])
def test_no_random_node_standard_operators_no_paths(made: Made, modality: str) -> None:
    content = made.bundle.graph(modality).read_bytes()
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    found = every_node(model)
    assert len(found) > 20
    assert not [node.op_type for node in found if node.op_type.startswith(RANDOM)]
    assert {node.domain for node in found} <= {"", "ai.onnx"}
    for path in (b"site-packages", b"fluxtalk/model", b"/home/", b"/work"):
        assert path not in content


def test_nothing_in_a_bundle_says_where_its_data_lay(made: Made, table_path: Path) -> None:
    assert made.bundle.manifest.training["data"] == table_path.name
    for file in made.bundle.folder.iterdir():
        assert bytes(table_path.parent) not in file.read_bytes(), file.name


def test_shapes_are_dynamic_and_images_are_uint8(made: Made) -> None:
    def described(modality: str) -> dict[str, list[object]]:
        model = onnx.load(made.bundle.graph(modality))
        values = [*model.graph.input, *model.graph.output]
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    assert described("text") == {
        "input_ids": ["batch", "length"],
        "mask": ["batch", "length"],
        "token_index": ["k"],
        "tokens": ["batch", "k", 48],
        "embeddings": ["batch", "k", 48],
    }
    assert described("image")["pixels"] == ["batch", 32, 32, 1]
    pixels = onnx.load(made.bundle.graph("image")).graph.input[0]
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize("opset", [18, pytest.param(22, marks=pytest.mark.slow)])
def test_export_keeps_the_opset(opset: int) -> None:
    found = graph_of("sound", kinds()["sound"], opset)
    assert {o.domain: o.version for o in found.opset_import}[""] == opset


def test_export_is_deterministic() -> None:
    kind = kinds()["sound"]
    first = export_onnx(embedder_of("sound", kind), kind.preprocess, kind.sample(), DEFAULT_OPSET)
    again = graph_of("sound", kind)  # perhaps by another process
    assert {o.domain: o.version for o in first.opset_import}[""] == DEFAULT_OPSET
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)


def test_opsets_out_of_range_are_refused(made: Made, stage1: Stage1) -> None:
    for opset in (17, 23):
        with pytest.raises(UsageError, match=r"18\.\.22"):
            export_onnx(made.run.embedder("text"), stage1.modalities["text"].preprocess, {}, opset)


def test_every_kind_of_head_exports_with_every_k(tmp_path: Path) -> None:
    """Options of the head that the shared run does not use: each graph against eager PyTorch, at every k."""
    kind = kinds()["sound"]
    embedder = embedder_of("sound", kind, **DEEP)
    graph_files(graph_of("sound", kind, **DEEP), tmp_path, "sound.onnx")
    rng = np.random.default_rng(0)
    batch = kind.preprocess.collate([rng.standard_normal((length, 12)).astype(np.float32) for length in (3, 7)])
    session = OnnxRuntimeSession(tmp_path / "sound.onnx")
    for k in (1, 2, 4):
        tokens, embeddings = embedder.embed_arrays(batch, k)
        got = session.run(batch, k)
        np.testing.assert_allclose(got["embeddings"], embeddings, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got["tokens"], tokens, rtol=0, atol=1e-5 * max(1, np.abs(tokens).max()))
    session.close()


class FixesItsBatch(nn.Module):
    """An encoder that the exporter would silently turn into a graph for two items."""

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return features + torch.zeros(len(features), 1, 1)


def test_an_encoder_that_fixes_a_size_is_refused() -> None:
    preprocess = FeaturesPreprocessor(6)
    encoder = FrozenEncoder(FixesItsBatch(), preprocess, 6)
    embedder = EagerEmbedder(encoder, RegisterTokenModule({"sound": 6}, dim=16, heads=2), "sound")
    batch = preprocess.collate([np.ones((3, 6), np.float32), np.ones((2, 6), np.float32)])
    with pytest.raises(UsageError, match=r"fixes the batch of features.*x\.shape\[0\]"):
        export_onnx(embedder, preprocess, batch)
