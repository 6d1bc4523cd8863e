"""Small graphs as the exporter writes them, and plain ways to run them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import OUTPUTS, TOKEN_INDEX
from fluxtalk.export.graph.graph_tools import run_model
from fluxtalk.export.graph.layers import detach
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import FrozenEncoder, GivenFeatures, SmallImageEncoder, SmallTextEncoder
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import FeaturesPreprocessor, ImagePreprocessor, Preprocessor, TextPreprocessor
from tests.traced import traced_once

VOCABULARY, TOKENS = 1100, 4
DIMS = {"text": 64, "image": 96, "features": 96}


@functools.cache
def graph(modality: str) -> onnx.ModelProto:
    """The float32 graph of a small embedder with random weights."""
    torch.manual_seed(0)
    head = RegisterTokenModule(DIMS, dim=48, heads=4)
    preprocess: dict[str, Preprocessor] = {
        "text": TextPreprocessor(Tokenizer(WordLevel({"a": 0}, "a")).to_str(), 24),
        "image": ImagePreprocessor(32, 32),
        "features": FeaturesPreprocessor(DIMS["features"]),
    }
    encoders: dict[str, nn.Module] = {
        "text": SmallTextEncoder(VOCABULARY, 24, DIMS["text"], depth=2),
        "image": SmallImageEncoder(32, 3, DIMS["image"], depth=2),
        "features": GivenFeatures(),
    }
    encoder = FrozenEncoder(encoders[modality], preprocess[modality], DIMS[modality])
    model = traced_once(EagerEmbedder(encoder, head, modality), preprocess[modality], inputs(modality, 2))
    detach(model)
    return model


def inputs(modality: str, batch: int, length: int = 9, seed: int = 0, scale: float = 1.0) -> Arrays:
    """Random inputs, without ``token_index``; rows of several lengths."""
    rng = np.random.default_rng(seed)
    if modality == "image":
        return {"pixels": rng.integers(0, 256, (batch, 32, 32, 3)).astype(np.uint8)}
    mask = np.arange(length) < rng.integers(1, length + 1, (batch, 1))
    if modality == "text":
        return {"input_ids": rng.integers(0, VOCABULARY, (batch, length)), "mask": mask}
    features = scale * rng.standard_normal((batch, length, DIMS["features"]))
    return {"features": features.astype(np.float32), "mask": mask}


def embed(model: onnx.ModelProto, arrays: Arrays, k: int = TOKENS, optimize: bool = True) -> Arrays:
    """``tokens`` and ``embeddings``, by ONNX Runtime."""
    found = run_model(model, {**arrays, TOKEN_INDEX: np.arange(k)}, optimize)
    return dict(zip(OUTPUTS, found, strict=True))


def model_of(
    nodes: list[onnx.NodeProto],
    given: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, int],
    weights: Arrays | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """A checked model of hand-written nodes; outputs are float32.

    Args:
        given: input to its element type and shape.
        outputs: output to its number of dimensions.
    """
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "graph",
            [onnx.helper.make_tensor_value_info(name, *kind) for name, kind in given.items()],
            [
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank)
                for name, rank in outputs.items()
            ],
            [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def node(operator: str, given: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node of one output, with its output's name."""
    return onnx.helper.make_node(operator, given, [output], name=output, **attributes)


def content(model: onnx.ModelProto) -> bytes:
    """The bytes of a model, to compare."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def operators(model: onnx.ModelProto) -> dict[str, str]:
    """Value to the operator that gives it."""
    return {name: node.op_type for node in model.graph.node for name in node.output}


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Value to its element type, as inferred."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {v.name: v.type.tensor_type.elem_type for v in [*inferred.input, *inferred.value_info, *inferred.output]}
    found.update((tensor.name, tensor.data_type) for tensor in inferred.initializer)
    return found
