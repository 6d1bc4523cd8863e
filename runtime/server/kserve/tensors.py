"""Tensors of the Open Inference Protocol (KServe v2): in JSON, or as bytes behind it (the binary extension).

A body of the binary extension is JSON of ``Inference-Header-Content-Length`` bytes, and then the data of every tensor
whose parameter ``binary_data_size`` says how many bytes it has, in the order of the tensors. Numbers are little-endian;
an element of BYTES is its length (4 bytes) and its content.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.server.http.json_arrays import array_of_lists, flattened
from fluxtalk.runtime.server.http.json_body import Body

NUMPY_TYPES: dict[str, str] = {
    "BOOL": "|b1",
    "UINT8": "|u1",
    "INT8": "|i1",
    "UINT16": "<u2",
    "INT16": "<i2",
    "UINT32": "<u4",
    "INT32": "<i4",
    "UINT64": "<u8",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
BYTES = "BYTES"
MOST_TENSORS = 16
_MOST_ELEMENTS = 1 << 28
Datatype = Literal[
    "BOOL", "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
Shape = Annotated[list[Annotated[int, Meta(ge=0, le=_MOST_ELEMENTS)]], Meta(min_length=1, max_length=8)]


@dataclass(frozen=True)
class Tensor:
    """Decoded input."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    numbers: NDArray[Any] | None
    """Data of every type but BYTES, in `shape`."""
    elements: Sequence[str | bytes] = ()
    """Data of BYTES: strings of JSON, or bytes."""


class TensorParameters(Body):
    """Parameters of a tensor."""

    binary_data_size: Annotated[int, Meta(ge=0)] | None = None


class InferTensor(Body):
    """Tensor in a body. Its data are in ``data``, or follow the JSON."""

    name: str
    datatype: Datatype
    shape: Shape
    data: Annotated[Any, Meta(extra_json_schema={"type": "array"})] = None
    """Lists in its shape, or one flat list."""
    parameters: TensorParameters | None = None


def read_tensors(entries: Sequence[InferTensor], binary: bytes, most_elements: int) -> list[Tensor]:
    """Read the ``inputs`` of a request.

    Args:
        binary: the bytes behind the JSON.
        most_elements: limit of a tensor of BYTES.

    Raises:
        ApiError: 400, with the tensor at fault.
    """
    tensors: list[Tensor] = []
    begin = 0
    for position, entry in enumerate(entries):
        param, name, shape = f"inputs[{position}]", entry.name, tuple(entry.shape)
        if name in (tensor.name for tensor in tensors):
            raise bad_request(f"{param} is called {name[:80]!r}, as another is.", param)
        if math.prod(shape) > _MOST_ELEMENTS:
            raise bad_request(f"{param} must have at most {_MOST_ELEMENTS:,} elements.", param)
        size = entry.parameters.binary_data_size if entry.parameters is not None else None
        if (size is None) == (entry.data is None):
            raise bad_request(f"{param} must have its data in the JSON or behind it.", param)
        raw: Any = entry.data
        if size is not None:
            raw = memoryview(binary)[begin : begin + size]
            begin += size
            if len(raw) < size:
                raise bad_request(f"{param} has {size:,} bytes of data, which did not come.", param)
        if entry.datatype == BYTES:
            count = math.prod(shape)
            if count > most_elements:
                raise bad_request(
                    f"{param} has {count:,} items, and one request takes at most {most_elements:,}.",
                    param,
                    "too_many_items",
                )
            elements = _elements_of_bytes(raw, count, param) if size is not None else _strings(raw, shape, param)
            tensors.append(Tensor(name, BYTES, shape, None, elements))
        else:
            read = _numbers_of_bytes if size is not None else _numbers_of_lists
            tensors.append(Tensor(name, entry.datatype, shape, read(raw, entry.datatype, shape, param)))
    if begin != len(binary):
        raise bad_request(f"The body has {len(binary) - begin:,} bytes that belong to no tensor.", "inputs")
    return tensors


def pack(array: NDArray[np.float32]) -> bytes:
    """Encode FP32 data as bytes."""
    return array.astype("<f4", copy=False).tobytes()


def _numbers_of_bytes(raw: memoryview, datatype: str, shape: tuple[int, ...], param: str) -> NDArray[Any]:
    dtype = np.dtype(NUMPY_TYPES[datatype])
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        raise bad_request(f"{param} of shape {list(shape)} has {wanted:,} bytes of data; got {len(raw):,}.", param)
    if dtype.kind == "b":  # any byte but 0 is true, and numpy would keep it as it is
        flags: NDArray[np.bool_] = np.frombuffer(raw, dtype=np.uint8) != 0
        return flags.reshape(shape)
    numbers: NDArray[Any] = np.frombuffer(raw, dtype=dtype).astype(dtype.newbyteorder("=")).reshape(shape)
    return numbers


def _numbers_of_lists(raw: Any, datatype: str, shape: tuple[int, ...], param: str) -> NDArray[Any]:
    try:
        return array_of_lists(raw, shape, np.dtype(NUMPY_TYPES[datatype]).newbyteorder("="))
    except ValueError:
        raise bad_request(
            f"{param} has {math.prod(shape):,} numbers of type {datatype} in data, in its shape.", param
        ) from None


def _elements_of_bytes(raw: memoryview, count: int, param: str) -> list[bytes]:
    elements: list[bytes] = []
    begin = 0
    while begin < len(raw) and len(elements) < count:
        size = int.from_bytes(raw[begin : begin + 4], "little")
        end = begin + 4 + size
        if begin + 4 > len(raw) or end > len(raw):
            break
        elements.append(bytes(raw[begin + 4 : end]))
        begin = end
    if begin != len(raw) or len(elements) != count:
        raise bad_request(f"{param} holds {count:,} elements, each its length in 4 bytes and its content.", param)
    return elements


def _strings(raw: Any, shape: tuple[int, ...], param: str) -> list[str]:
    found = flattened(raw, shape)
    if found is None or not all(isinstance(element, str) for element in found):
        raise bad_request(f"{param} holds {math.prod(shape):,} strings in data, in its shape.", param)
    return found
