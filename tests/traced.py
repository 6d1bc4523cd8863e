"""Traced graphs, kept for other tests and for the other processes of `make test`: tracing is most of an export."""

from __future__ import annotations

import functools
import hashlib
import importlib
import tempfile
from pathlib import Path
from typing import Any

import onnx
import pytest
from filelock import FileLock

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.files import write_atomically
from fluxtalk.export.graph.to_onnx import export_onnx
from fluxtalk.export.options import DEFAULT_OPSET
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.preprocess import Preprocessor

_folder = [Path(tempfile.gettempdir())]


def keep_in(folder: Path) -> None:
    """Keep graphs in a folder, which is another one for other code."""
    _folder[0] = folder


def read_operators_once(patch: pytest.MonkeyPatch) -> None:
    """Let PyTorch's exporter read its library of operators once; else it does for every graph, which is a seventh.

    The library's private class is patched; where another version has none, each graph takes its time.
    """
    try:
        registry: Any = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        read = functools.cache(registry.from_torchlib)
    except (ImportError, AttributeError):
        return
    patch.setattr(registry, "from_torchlib", staticmethod(read))


def traced_once(
    embedder: EagerEmbedder,
    preprocess: Preprocessor,
    sample: Arrays,
    opset: int = DEFAULT_OPSET,
    attention: bool = False,
) -> onnx.ModelProto:
    """Export as `export_onnx` does, or read what it gave for the same modules, weights, shapes and options.

    A test of tracing itself calls `export_onnx`.
    """
    kinds = [f"{type(module).__module__}.{type(module).__qualname__}" for module in embedder.modules()]
    shapes = [(name, array.shape, array.dtype) for name, array in sample.items()]
    given = (embedder, kinds, embedder.head.config, embedder.modality, preprocess.to_parts(), shapes, opset, attention)
    key = hashlib.sha256(repr(given).encode())
    for tensor in embedder.state_dict().values():
        key.update(tensor.numpy().tobytes())
    file = _folder[0] / f"{key.hexdigest()}.onnx"
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            write_atomically(file, export_onnx(embedder, preprocess, sample, opset, attention).SerializeToString())
    return onnx.load(file)
