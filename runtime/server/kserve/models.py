"""Modalities as models of the Open Inference Protocol: their tensors, read as items.

Inputs are either raw, one tensor of BYTES that is called like the kind (``text``, ``image``, ``audio``), or prepared by
the client: the tensors of the graph, as `fluxtalk-export triton` describes them. Beside either, ``token_index`` says
how many register tokens: ``arange(k)`` in each row. A parameter ``k`` of the request says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypedDict, cast

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import OUTPUTS, TOKEN_INDEX
from fluxtalk.preprocess import AudioPreprocessor, Preprocessor
from fluxtalk.runtime.server.execution.requests import Item
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.server.kserve.tensors import BYTES, Datatype, Tensor

VERSION = "1"
RAW_KINDS = ("text", "image", "audio")
_MASK = "mask"


class TensorMetadata(TypedDict):
    """A tensor that a model takes or gives; -1 is any size."""

    name: str
    datatype: Datatype
    shape: list[Annotated[int, Meta(ge=-1)]]


class ModelMetadata(TypedDict):
    """Description of a model: every tensor that a client may send, raw and prepared."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def metadata(modality: str, preprocess: Preprocessor, model: ServedModel) -> ModelMetadata:
    """Describe a model."""
    raw: list[TensorMetadata] = (
        [{"name": preprocess.kind, "datatype": "BYTES", "shape": [-1]}] if preprocess.kind in RAW_KINDS else []
    )
    index: TensorMetadata = {"name": TOKEN_INDEX, "datatype": "INT64", "shape": [-1, -1]}
    dim = model.layout.dim
    return {
        "name": modality,
        "versions": [VERSION],
        "platform": "fluxtalk",
        "inputs": [*raw, *_prepared(modality, model), index],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, -1, dim]} for name in OUTPUTS],
    }


def read_items(tensors: Sequence[Tensor], modality: str, preprocess: Preprocessor, model: ServedModel) -> list[Item]:
    """Read the items of a request's tensors, ``token_index`` aside.

    Raises:
        ApiError: 400, with the tensor at fault.
    """
    by_name = {tensor.name: tensor for tensor in tensors if tensor.name != TOKEN_INDEX}
    raw = preprocess.kind if preprocess.kind in RAW_KINDS else None
    if raw is not None and set(by_name) == {raw}:
        return _raw_items(by_name[raw], modality, model)
    known = set(preprocess.input_names)
    main = preprocess.input_names[0]
    if main not in by_name or set(by_name) - known:
        described = " and ".join(preprocess.input_names)
        raise bad_request(
            f"The model {modality} takes {f'the tensor {raw}, or ' if raw else ''}{described}; "
            f"got {', '.join(name[:80] for name in by_name) or 'none'}.",
            "inputs",
        )
    specs = {spec["name"]: spec for spec in _prepared(modality, model)}
    for tensor in by_name.values():
        datatype, wanted = specs[tensor.name]["datatype"], specs[tensor.name]["shape"]
        fits = len(tensor.shape) == len(wanted) and all(
            size in (-1, given) for size, given in zip(wanted, tensor.shape, strict=True)
        )
        if tensor.datatype != datatype or not fits:
            raise bad_request(
                f"{tensor.name} must be {datatype} of shape {wanted}, -1 for any; "
                f"got {tensor.datatype} {list(tensor.shape)}.",
                "inputs",
            )
    count = by_name[main].shape[0]
    if not count:
        # Tensors beside it may then claim any size at no cost.
        raise bad_request(f"{main} holds no row; give at least one.", "inputs", "empty")
    model.require_count(count, "inputs")
    values = _rows(by_name[main], by_name.get(_MASK))
    return [Item(modality, _as_item(row, preprocess)) for row in values]


def read_k(tensors: Sequence[Tensor], parameter: int | None, rows: int) -> int | None:
    """Read how many register tokens are asked for; None if neither the tensor nor the parameter says it.

    Raises:
        ApiError: 400: they do not agree, or the tensor does not count from 0.
    """
    tensor = next((tensor for tensor in tensors if tensor.name == TOKEN_INDEX), None)
    if tensor is None:
        return parameter
    index = tensor.numbers
    if index is None or tensor.datatype != "INT64" or index.ndim > 2 or (index.ndim == 2 and len(index) != rows):
        raise bad_request(
            f"{TOKEN_INDEX} must be INT64 of shape [k] or [{rows}, k]; got {tensor.datatype} {list(tensor.shape)}.",
            "inputs",
        )
    k: int = index.shape[-1]
    if not k or (index != np.arange(k)).any():
        raise bad_request(f"{TOKEN_INDEX} must count 0, 1, ..., k - 1 in each row.", "inputs")
    if parameter not in (None, k):
        raise bad_request(f"The parameter k is {str(parameter)[:40]}, and {TOKEN_INDEX} has {k}.", "parameters")
    return k


def _raw_items(tensor: Tensor, modality: str, model: ServedModel) -> list[Item]:
    if tensor.datatype != BYTES or (len(tensor.shape) > 1 and tensor.shape[1:] != (1,)):
        raise bad_request(
            f"{tensor.name} must be BYTES of shape [n] or [n, 1]; got {tensor.datatype} {list(tensor.shape)}.", "inputs"
        )
    model.require_count(len(tensor.elements), "inputs")
    return [
        model.item(modality, element, f"{tensor.name}[{position}]") for position, element in enumerate(tensor.elements)
    ]


def _prepared(modality: str, model: ServedModel) -> list[TensorMetadata]:
    """Describe the tensors of the graph, ``token_index`` aside."""
    return [
        {
            "name": spec.name,
            "datatype": cast(Datatype, spec.datatype),
            "shape": [size if isinstance(size, int) else -1 for size in spec.shape],
        }
        for spec in model.manifest.modalities[modality].inputs
        if spec.name != TOKEN_INDEX
    ]


def _rows(tensor: Tensor, mask: Tensor | None) -> list[NDArray[Any]]:
    """Split a prepared tensor into rows without their padding, which is at the end."""
    assert tensor.numbers is not None
    if mask is None:
        return list(tensor.numbers)
    kept = mask.numbers
    assert kept is not None
    if kept.shape != tensor.shape[:2]:
        raise bad_request(f"mask must have the shape {list(tensor.shape[:2])}; got {list(kept.shape)}.", "inputs")
    lengths = kept.sum(axis=1)
    if not lengths.all() or (kept != (np.arange(kept.shape[1]) < lengths[:, None])).any():
        raise bad_request(
            "mask must be true for what a row holds, at least one, and then false for its padding.", "inputs"
        )
    return [row[:length] for row, length in zip(tensor.numbers, lengths, strict=True)]


def _as_item(row: NDArray[Any], preprocess: Preprocessor) -> Any:
    """Make a prepared row a value of `Item`, so that it is checked as every other."""
    if preprocess.kind == "text":
        return row.tolist()
    if isinstance(preprocess, AudioPreprocessor) and preprocess.features is None:
        # Normalizing what is normalized changes nothing, but for sounds near silence.
        return row, preprocess.sample_rate
    return row
