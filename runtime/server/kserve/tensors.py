"""Tensors of the Open Inference Protocol (KServe v2): in JSON, or as bytes behind it (the binary extension).

A body of the binary extension is JSON of ``Inference-Header-Content-Length`` bytes, and then the data of every tensor
whose parameter ``binary_data_size`` says how many bytes it has, in the order of the tensors. Numbers are little-endian;
an element of BYTES is its length (4 bytes) and its content.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.server.http.json_arrays import array_of_lists, flattened

DTYPES: dict[str, str] = {
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
_MOST_ELEMENTS = 1 << 28
_MOST_TENSORS = 16


@dataclass(frozen=True)
class Tensor:
    """One input."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    numbers: NDArray[Any] | None
    """Of every type but BYTES, in `shape`."""
    elements: Sequence[str | bytes] = ()
    """Of BYTES: strings of JSON, or bytes."""


def read_tensors(entries: Any, binary: bytes, most_elements: int) -> list[Tensor]:
    """The ``inputs`` of a request.

    Args:
        binary: what stands behind the JSON.
        most_elements: of a tensor of BYTES.

    Raises:
        ApiError: 400, with the tensor at fault.
    """
    if not isinstance(entries, list) or not entries:
        raise bad_request("inputs is a list of tensors, with at least one.", "inputs")
    tensors: list[Tensor] = []
    begin = 0
    for position, entry in enumerate(entries[: _MOST_TENSORS + 1]):
        param = f"inputs[{position}]"
        if position == _MOST_TENSORS:
            raise bad_request(f"inputs has at most {_MOST_TENSORS} tensors; got {len(entries)}.", "inputs")
        name, datatype, shape, size = _header(entry, param)
        if name in (tensor.name for tensor in tensors):
            raise bad_request(f"{param} is called {name[:80]!r}, as another is.", param)
        raw: Any = entry.get("data")
        if size is not None:
            raw = memoryview(binary)[begin : begin + size]
            begin += size
            if len(raw) < size:
                raise bad_request(f"{param} has {size:,} bytes of data, which did not come.", param)
        if datatype == BYTES:
            count = math.prod(shape)
            if count > most_elements:
                raise bad_request(
                    f"{param} has {count:,} items, and one request takes at most {most_elements:,}.",
                    param,
                    "too_many_items",
                )
            elements = _elements_of_bytes(raw, count, param) if size is not None else _strings(raw, shape, param)
            tensors.append(Tensor(name, datatype, shape, None, elements))
        else:
            read = _numbers_of_bytes if size is not None else _numbers_of_lists
            tensors.append(Tensor(name, datatype, shape, read(raw, datatype, shape, param)))
    if begin != len(binary):
        raise bad_request(f"The body has {len(binary) - begin:,} bytes that belong to no tensor.", "inputs")
    return tensors


def pack(array: NDArray[np.float32]) -> bytes:
    """FP32 data as bytes."""
    return array.astype("<f4", copy=False).tobytes()


def _header(entry: Any, param: str) -> tuple[str, str, tuple[int, ...], int | None]:
    """Name, type, shape, and the bytes of its data where they are not in the JSON."""
    if not isinstance(entry, dict) or set(entry) - {"name", "datatype", "shape", "data", "parameters"}:
        raise bad_request(f"{param} has the fields name, datatype, shape, data and parameters.", param)
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    if not isinstance(name, str):
        raise bad_request(f"{param} has a name.", param)
    if not isinstance(datatype, str) or datatype not in (*DTYPES, BYTES):
        raise bad_request(f"{param} has a datatype of {', '.join((*DTYPES, BYTES))}.", param)
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 8
        or not all(type(size) is int and 0 <= size <= _MOST_ELEMENTS for size in shape)
        or math.prod(shape) > _MOST_ELEMENTS
    ):
        raise bad_request(f"{param} has a shape: a list of sizes.", param)
    parameters = entry.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict) or set(parameters) - {"binary_data_size"}:
        raise bad_request(f"{param} takes the parameter binary_data_size and no other.", f"{param}.parameters")
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise bad_request(f"{param} has a binary_data_size in bytes.", f"{param}.parameters")
    if (size is None) == (entry.get("data") is None):
        raise bad_request(f"{param} has its data in the JSON or behind it.", param)
    return name, datatype, tuple(shape), size


def _numbers_of_bytes(raw: memoryview, datatype: str, shape: tuple[int, ...], param: str) -> NDArray[Any]:
    dtype = np.dtype(DTYPES[datatype])
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
        return array_of_lists(raw, shape, np.dtype(DTYPES[datatype]).newbyteorder("="))
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
