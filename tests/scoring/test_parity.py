"""Parity figures on cases whose answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fluxtalk.errors import UsageError
from fluxtalk.scoring.parity import (
    TOLERANCES,
    OutputDifference,
    Tolerance,
    embedding_difference,
    nearest_agreement,
    token_difference,
    top1_agreement,
)


def unit(*shape: int) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    unit: np.ndarray = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit


def test_differences_of_known_vectors() -> None:
    expected = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    found = np.array([[0.8, 0.6], [0.0, 1.0]], np.float32)
    difference = embedding_difference(found, expected)
    assert difference.max_abs == pytest.approx(0.6)
    assert difference.mean_abs == pytest.approx(0.8 / 4)
    assert difference.min_cosine == pytest.approx(0.8)
    assert token_difference(10 * found, 10 * expected) == pytest.approx(0.6)
    assert token_difference(0.1 * found, 0.1 * expected) == pytest.approx(0.06)


def test_nan_breaks_every_promise_and_zero_rows_are_equal() -> None:
    zeros = np.zeros((2, 4), np.float32)
    assert embedding_difference(zeros, zeros).min_cosine == 1
    assert embedding_difference(zeros, unit(2, 4)).min_cosine < 0
    broken = zeros.copy()
    broken[0, 0] = np.nan
    for tolerance in TOLERANCES.values():
        assert embedding_difference(broken, zeros).violations(tolerance)
    assert top1_agreement(np.full((5, 4), np.nan, np.float32), unit(5, 4)) == 0


def test_a_promise_says_the_bound_that_it_has() -> None:
    assert {name: tolerance.promise() for name, tolerance in TOLERANCES.items()} == {
        "fp32": "at most 1e-05",
        "tf32": "at most 5e-03",
        "fp16": "at most 1e-02",
        "bf16": "a cosine of at least 0.9995",
        "int8": "a cosine of at least 0.995",
    }


def test_every_promise_can_be_broken_and_is_named() -> None:
    tolerance = Tolerance(0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.9)
    good = OutputDifference(0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.9)
    assert good.violations(tolerance) == []
    for name, bad in {
        "max_abs": 0.2,
        "mean_abs": 0.2,
        "min_cosine": 0.8,
        "tokens": 0.2,
        "prefix": 0.2,
        "rows": float("nan"),
        "top1": 0.8,
    }.items():
        phrases = dataclasses.replace(good, **{name: bad}).violations(tolerance)
        assert len(phrases) == 1
        assert phrases[0].startswith(name)
    assert Tolerance.from_dict(tolerance.to_dict()) == tolerance
    with pytest.raises(UsageError, match="rows"):
        dataclasses.replace(tolerance, rows=-1)


def test_nearest_items_that_move_are_counted_and_identical_ones_are_not() -> None:
    gallery = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    queries = np.array([[1, 0], [0, 1]], np.float32)
    # The copy of the nearest item is found instead of it: no disagreement.
    moved = np.array([[0.9, 0], [1, 0], [0, 1]], np.float32)
    assert nearest_agreement(queries, moved, queries, gallery) == 1
    swapped = gallery[::-1].copy()
    assert nearest_agreement(queries, swapped, queries, np.array([[1, 0], [0.5, 0], [0, 1]], np.float32)) == 0
    items = unit(50, 8)
    assert top1_agreement(items, items) == 1
    assert top1_agreement(unit(51, 8)[1:][::-1].copy(), items) < 0.5
