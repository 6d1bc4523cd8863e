"""Replaying golden vectors notices each kind of fault, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.errors import InputError, ParityError
from fluxtalk.export.graph.golden_cases import with_hard_rows
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.verify import ParityReport, verify_sessions
from fluxtalk.scoring.parity import EXPORT_TOLERANCE, TOLERANCES
from fluxtalk.scoring.parity_accumulator import AttentionDifference, ParityAccumulator, attention_tolerance
from tests.conftest import Made

Outputs = dict[str, NDArray[np.float32]]


class Faulty:
    """Real session whose outputs are changed."""

    def __init__(self, made: Made, modality: str, fault: Callable[[Arrays, Outputs], None]) -> None:
        self._session = OnnxRuntimeSession(made.bundle.graph(modality))
        self._fault = fault
        self.backend = self._session.backend
        self.max_length: int | None = None

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> Outputs:
        found = self._session.run(inputs, k, outputs)
        self._fault(inputs, found)
        return found

    def describe(self) -> str:
        return "faulty"

    def close(self) -> None:
        self._session.close()


def replayed(made: Made, modality: str, fault: Callable[[Arrays, Outputs], None]) -> list[ParityReport]:
    return list(verify_sessions(made.bundle, lambda m: Faulty(made, m, fault), [modality]))


@pytest.mark.parametrize("modality", ["image", "text"])
def test_without_a_fault_nothing_is_found(made: Made, modality: str) -> None:
    reports = replayed(made, modality, lambda _inputs, _found: None)
    assert [report.k for report in reports] == [1, 2, 3, 4]
    for report in reports:
        assert report.broken == []
        assert report.cases > 10
        assert report.difference.max_abs <= 1e-6
        report.require()


def only_at_two(_: Arrays, found: Outputs) -> None:
    if found["tokens"].shape[1] == 2:
        found["embeddings"][:, 0] += 1e-3


def by_the_neighbors(inputs: Arrays, found: Outputs) -> None:
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
        (by_the_neighbors, {"max_abs", "rows"}, [1, 2, 3, 4]),
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


def only_at_the_longest(inputs: Arrays, found: Outputs) -> None:
    if inputs["mask"].shape[1] == 32:
        found["embeddings"] += 1e-3


def test_a_fault_at_the_longest_input_alone_is_found(made: Made) -> None:
    assert made.bundle.golden.batch["text"].inputs["mask"].shape[1] + 7 < 32
    assert all("max_abs" in " ".join(report.broken) for report in replayed(made, "text", only_at_the_longest))


def refused_at_the_longest(inputs: Arrays, _: Outputs) -> None:
    if inputs["mask"].shape[1] == 32:
        raise InputError("No such position.")


def test_a_session_that_does_not_run_the_longest_input_is_refused(made: Made) -> None:
    with pytest.raises(ParityError, match=r"text in fp32 does not run the longest input .* of length 32, on faulty"):
        replayed(made, "text", refused_at_the_longest)
    # One that was compiled for shorter inputs is not asked for the longest.
    session = Faulty(made, "text", refused_at_the_longest)
    session.max_length = 31
    assert not any(report.broken for report in verify_sessions(made.bundle, lambda _: session, ["text"]))


def test_attention_is_compared_where_there_is_a_feature() -> None:
    mask = np.array([[True, True, False], [False, False, False]])
    weights = np.array([[[0.25, 0.75, 0.0]], [[0.4, 0.3, 0.3]]], dtype=np.float32)
    vectors = np.ones((2, 1, 2), dtype=np.float32)
    expected = {"tokens": vectors, "embeddings": vectors, "attention": weights}

    def compared(attention: NDArray[np.float32]) -> AttentionDifference:
        worst = ParityAccumulator()
        worst.add({"mask": mask}, {**expected, "attention": attention}, expected)
        assert worst.attention is not None
        return worst.attention

    assert compared(weights) == AttentionDifference(0, 0)
    # Without padding, with more of it, and with any weights in a row without a feature.
    assert compared(weights[:, :, :2]) == AttentionDifference(0, 0)
    assert compared(np.pad(weights, [(0, 0), (0, 0), (0, 4)])) == AttentionDifference(0, 0)
    assert compared(weights * np.array([1, 9], dtype=np.float32)[:, None, None]) == AttentionDifference(0, 0)
    assert compared(weights + np.float32(0.125)) == AttentionDifference(0.125, 0.375)
    assert compared(weights * np.float32(np.nan)) == AttentionDifference(np.inf, np.inf)


def test_what_attention_promises_follows_from_the_other_promises() -> None:
    assert attention_tolerance(EXPORT_TOLERANCE) == EXPORT_TOLERANCE.tokens
    found = {name: attention_tolerance(TOLERANCES[name]) for name in ("fp32", "fp16", "bf16", "int8")}
    assert found == pytest.approx({"fp32": 1e-4, "fp16": 1e-2, "bf16": np.sqrt(1e-3), "int8": 0.1})


def test_golden_items_end_with_the_hard_cases(made: Made) -> None:
    case = made.bundle.golden.batch["text"]
    text, expected = case.inputs, case.expected
    assert text["mask"][-3:].sum(axis=1).tolist() == [1, 1, 0]
    assert text["mask"][-3, 0]
    assert text["mask"][-2, -1]
    assert np.isfinite(expected["tokens"]).all()
    pixels = made.bundle.golden.batch["image"].inputs
    assert not pixels["pixels"][-1].any()
    assert pixels["pixels"][:-1].any(axis=(1, 2, 3)).all()
    # At most 64 of each; the table has 32 and 64.
    assert len(pixels["pixels"]) == 65


def test_hard_cases_of_features() -> None:
    features = np.arange(24, dtype=np.float32).reshape(2, 3, 4) + 1
    mask = np.array([[True, True, False], [True, True, True]])
    batch: dict[str, Any] = with_hard_rows({"features": features, "mask": mask})
    assert batch["features"].shape == (5, 3, 4)
    np.testing.assert_array_equal(batch["features"][2, 0], features[0, 0])
    np.testing.assert_array_equal(batch["features"][3, 2], features[0, 0])
    assert not batch["features"][4].any()
    assert batch["features"].dtype == np.float32
