"""Lists of JSON to arrays, against numpy on what both take; and what numpy would take, and should not."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from fluxtalk.runtime.server.http.json_arrays import array_of_lists, flattened
from fluxtalk.runtime.server.kserve.tensors import NUMPY_TYPES


@pytest.mark.parametrize("datatype", NUMPY_TYPES)
@pytest.mark.parametrize("shape", [(40_000,), (3, 4), (2, 3, 1, 2), (1,), (0,), (2, 0)])
def test_what_numpy_makes_of_the_same_lists(datatype: str, shape: tuple[int, ...]) -> None:
    dtype = np.dtype(NUMPY_TYPES[datatype]).newbyteorder("=")
    array = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)
    for given in (array.tolist(), array.ravel().tolist()):
        made = array_of_lists(given, shape, dtype)
        assert made.dtype == dtype
        assert np.array_equal(made, array)


def test_the_largest_and_smallest_integers() -> None:
    for datatype in ("INT8", "UINT8", "INT64", "UINT64"):
        dtype = np.dtype(NUMPY_TYPES[datatype])
        smallest, largest = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        assert array_of_lists([smallest, largest], (2,), dtype).tolist() == [smallest, largest]
        for beyond in (smallest - 1, largest + 1):
            with pytest.raises(ValueError, match="range"):
                array_of_lists([beyond], (1,), dtype)


def test_a_float_too_large_is_infinity_and_integers_are_floats() -> None:
    assert array_of_lists([1e39, -1e39, 3], (3,), np.dtype(np.float32)).tolist() == [math.inf, -math.inf, 3.0]


@pytest.mark.parametrize(
    ("raw", "shape", "dtype"),
    [
        (["1"], (1,), "i8"),
        ([None], (1,), "f4"),
        ([True], (1,), "i8"),
        ([1, True], (2,), "f4"),
        ([1], (1,), "?"),
        ([1.0], (1,), "i8"),
        ([10**400], (1,), "f8"),
        ([[1], 2], (2,), "i8"),
        ([1, [2]], (2,), "i8"),
        ([[1, 2], [3]], (2, 2), "i8"),
        ([[1, 2]], (2, 1), "i8"),
        ([[[1]]], (1,), "i8"),
        ([1], (2,), "i8"),
        ({"0": 1}, (1,), "i8"),
        ("1", (1,), "i8"),
        (1, (1,), "i8"),
    ],
    ids=str,
)
def test_another_shape_or_type_is_refused(raw: Any, shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match=r"another|range"):
        array_of_lists(raw, shape, np.dtype(dtype))


def test_strings_cost_no_more_than_they_are() -> None:
    raw = ["x" * 30_000, *[""] * 8000]  # numpy: 8001 x 30,000 x 4 bytes
    tracemalloc.start()
    try:
        for shape in ((1, 2), (8001,)):
            with pytest.raises(ValueError, match="another"):
                array_of_lists(raw, shape, np.dtype(np.int64))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_lists_that_are_deeper_or_longer_than_the_shape() -> None:
    deep: Any = "a"
    for _ in range(500):
        deep = [deep]
    for raw, shape in ((deep, (1, 1)), ([["a"] * 10_000], (1, 2)), ([["a"], ["b"]], (1, 2))):
        found = flattened(raw, shape)
        assert found is None or not all(isinstance(element, str) for element in found)
