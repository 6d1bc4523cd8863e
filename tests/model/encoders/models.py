"""Small random audio models of transformers, and the trip of an encoder through ONNX that their tests share."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from bench.encoders.torchvision_operators import declare_torchvision_operators
from fluxtalk.arrays import Array
from fluxtalk.model.tracing import exporting

declare_torchvision_operators()  # its models import torchvision
transformers: Any = importlib.import_module("transformers")

_RELATIVE = 1e-5


def speech_model(kind: str, norm: str, stable: bool, **settings: Any) -> Any:
    """A random `Wav2Vec2Model`, `HubertModel` or `WavLMModel`: 2 layers of 32, published strides and kernels."""
    torch.manual_seed(0)
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": stable,
    }
    config = getattr(transformers, f"{kind}Config")(**{**small, **settings})
    model = getattr(transformers, f"{kind}Model")(config).eval()
    batch_norm = getattr(model.encoder.pos_conv_embed, "batch_norm", None)
    if batch_norm is not None:  # as trained: a new one hardly changes anything
        batch_norm.running_mean.normal_()
        batch_norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(batch_norm.bias)
    return model


def rows(lengths: list[int], width: int, *trailing: int) -> tuple[Tensor, Tensor]:
    """Random values (rows, width, ...), noise in their padding as well, and a mask of so many from the first."""
    values = torch.randn(len(lengths), width, *trailing, generator=torch.Generator().manual_seed(len(lengths)))
    return 0.3 * values, torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def require_parity(encoder: nn.Module, sample: tuple[Tensor, Tensor], batches: list[tuple[Tensor, Tensor]]) -> None:
    """Export an encoder at opset 20, batch and length dynamic, and compare ONNX Runtime with eager on batches.

    Features agree within 1e-5 of the largest, masks exactly.
    """
    dynamic = {0: Dim("batch", min=1), 1: Dim("length", min=1)}
    with exporting():
        program = torch.onnx.export(
            encoder, sample, dynamo=True, opset_version=20, input_names=["values", "mask"],
            dynamic_shapes=(dynamic, dynamic), verbose=False,
        )  # fmt: skip
    assert program is not None
    sizes = [
        [dim.dim_param for dim in value.type.tensor_type.shape.dim[:2]] for value in program.model_proto.graph.input
    ]
    assert sizes == [["batch", "length"]] * 2
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for values, mask in [sample, *batches]:
        with torch.inference_mode():
            features, kept = (array.numpy() for array in encoder(values, mask))
        found: list[Array] = session.run(None, {"values": values.numpy(), "mask": mask.numpy()})
        assert np.array_equal(found[1], kept)
        assert np.abs(found[0] - features).max() <= _RELATIVE * np.abs(features).max()
