"""Replaying golden vectors notices each kind of fault, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fluxtalk.bundle import OUTPUTS, TOKEN_INDEX
from fluxtalk.errors import ParityError
from fluxtalk.runtime.golden import ParityReport, hard_cases, read_golden, verify_golden
from fluxtalk.runtime.session import Arrays
from fluxtalk.runtime.session_onnxruntime import OnnxRuntimeSession
from tests.conftest import Made

Outputs = dict[str, NDArray[np.float32]]


class Faulty:
    """A real session whose outputs are tampered with."""

    def __init__(self, made: Made, modality: str, fault: Callable[[Arrays, Outputs], None]) -> None:
        self._session = OnnxRuntimeSession(made.bundle.graph(modality))
        self._fault = fault

    def run(self, inputs: Arrays, outputs: Sequence[str] = OUTPUTS) -> Outputs:
        found = self._session.run(inputs, outputs)
        self._fault(inputs, found)
        return found

    def describe(self) -> str:
        return "faulty"

    def close(self) -> None:
        self._session.close()


def replayed(made: Made, modality: str, fault: Callable[[Arrays, Outputs], None]) -> list[ParityReport]:
    return list(verify_golden(made.bundle, lambda m: Faulty(made, m, fault), [modality]))


@pytest.mark.parametrize("modality", ["image", "text"])
def test_without_a_fault_nothing_is_found(made: Made, modality: str) -> None:
    reports = replayed(made, modality, lambda _inputs, _found: None)
    assert [report.k for report in reports] == [1, 2, 3, 4]
    for report in reports:
        assert report.broken == []
        assert report.cases > 10
        assert report.difference.max_abs <= 1e-6
        report.require()


def only_at_two(inputs: Arrays, found: Outputs) -> None:
    if len(inputs[TOKEN_INDEX]) == 2:
        found["embeddings"][:, 0] += 1e-3


def by_the_neighbours(inputs: Arrays, found: Outputs) -> None:
    found["embeddings"] += 2e-5 * len(found["embeddings"])


def in_the_tokens(_: Arrays, found: Outputs) -> None:
    found["tokens"][-1] *= 1.01


def nan_in_one_row(_: Arrays, found: Outputs) -> None:
    found["embeddings"][-1, 0, 0] = np.nan


def rows_exchanged(_: Arrays, found: Outputs) -> None:
    found["embeddings"][:] = found["embeddings"][::-1].copy()


@pytest.mark.parametrize(
    ("fault", "names", "counts"),
    [
        (only_at_two, {"max_abs", "prefix"}, [2]),
        (by_the_neighbours, {"max_abs", "rows"}, [1, 2, 3, 4]),
        (in_the_tokens, {"tokens"}, [1, 2, 3, 4]),
        (nan_in_one_row, {"max_abs", "min_cosine"}, [1, 2, 3, 4]),
        (rows_exchanged, {"max_abs", "top1"}, [1, 2, 3, 4]),
    ],
)
def test_each_fault_is_found_where_it_is(
    made: Made, fault: Callable[[Arrays, Outputs], None], names: set[str], counts: list[int]
) -> None:
    reports = replayed(made, "text", fault)
    assert [report.k for report in reports if report.broken] == counts
    for report in reports:
        if report.broken:
            assert names <= {phrase.split()[0] for phrase in report.broken}
            with pytest.raises(ParityError, match=f"k = {report.k} on faulty"):
                report.require()


def padding_that_leaks(inputs: Arrays, found: Outputs) -> None:
    found["embeddings"] += 1e-3 * np.float32((~inputs["mask"]).mean())


def test_padding_that_leaks_is_found(made: Made) -> None:
    assert all("rows" in " ".join(report.broken) for report in replayed(made, "text", padding_that_leaks))


def test_golden_items_end_with_the_hard_cases(made: Made) -> None:
    text, expected = read_golden(made.bundle, "text")
    assert text["mask"][-3:].sum(axis=1).tolist() == [1, 1, 0]
    assert text["mask"][-3, 0]
    assert text["mask"][-2, -1]
    assert np.isfinite(expected["tokens"]).all()
    pixels, _ = read_golden(made.bundle, "image")
    assert not pixels["pixels"][-1].any()
    assert pixels["pixels"][:-1].any(axis=(1, 2, 3)).all()
    # 64 of each where there are as many; the table has 32 and 64.
    assert len(pixels["pixels"]) == 65


def test_hard_cases_of_features() -> None:
    features = np.arange(24, dtype=np.float32).reshape(2, 3, 4) + 1
    mask = np.array([[True, True, False], [True, True, True]])
    batch: dict[str, Any] = hard_cases({"features": features, "mask": mask})
    assert batch["features"].shape == (5, 3, 4)
    np.testing.assert_array_equal(batch["features"][2, 0], features[0, 0])
    np.testing.assert_array_equal(batch["features"][3, 2], features[0, 0])
    assert not batch["features"][4].any()
    assert batch["features"].dtype == np.float32
