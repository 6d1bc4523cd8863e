"""Sizes of a batch against an engine's profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluxtalk.errors import InputError
from fluxtalk.runtime.backends.engine_shapes import EngineInput, EngineInputs, bucket_size


def test_sizes_have_few_buckets() -> None:
    sizes = [bucket_size(size) for size in range(1, 513)]
    assert sizes[:16] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 12, 12, 14, 14, 16, 16]
    assert all(size <= found <= size * 1.25 for size, found in enumerate(sizes, start=1))
    assert len(set(sizes)) == 32
    assert sizes == sorted(sizes)


def test_a_graph_of_one_token_has_no_axis_k() -> None:
    inputs = {
        "pixels": EngineInput.from_dynamic("pixels", "uint8", [-1, 4, 4, 1]),
        "token_index": EngineInput.from_dynamic("token_index", "int64", [1]),
    }
    engine = EngineInputs("image", inputs, [{"batch": [1, 2, 4], "k": [1, 1, 1]}])
    batch: dict[str, Any] = {"pixels": np.zeros((3, 4, 4, 1), np.uint8), "token_index": np.arange(1)}
    assert engine.sizes(batch) == {"batch": 3, "k": 1}
    assert engine.choose_profile({"batch": 3, "k": 1}, rounded=True) == (0, {"batch": 3, "k": 1})
    with pytest.raises(InputError, match="pixels as uint8"):
        engine.sizes({**batch, "pixels": np.zeros((3, 5, 4, 1), np.uint8)})
