"""The numpy algebra of tokens against plain loops and its torch twin."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fluxtalk import tokens as algebra
from fluxtalk.errors import TokenCountError, UsageError
from fluxtalk.model.head import pooling

ITEMS, TOKENS, DIM = 5, 4, 6


@pytest.fixture
def tokens() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((ITEMS, TOKENS, DIM)).astype(np.float32)


def _unit(vector: list[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("overlapping", range(1, TOKENS + 1))
@pytest.mark.parametrize("k", range(1, TOKENS + 1))
def test_pool_equals_plain_loops(tokens: NDArray[np.float32], overlapping: int, k: int) -> None:
    pooled = algebra.pool(tokens, overlapping, k)
    used = min(k, overlapping)
    for b in range(ITEMS):
        mean = [sum(float(tokens[b, j, d]) for j in range(used)) / used for d in range(DIM)]
        assert pooled[b] == pytest.approx(_unit(mean), abs=1e-6)


@pytest.mark.parametrize("overlapping", range(1, TOKENS + 1))
def test_pool_equals_the_torch_twin(tokens: NDArray[np.float32], overlapping: int) -> None:
    prefixes = pooling.prefix_embeddings(torch.from_numpy(tokens), pooling.prefix_weights(TOKENS, overlapping)).numpy()
    for k in range(1, TOKENS + 1):
        assert np.abs(algebra.pool(tokens, overlapping, k) - prefixes[:, k - 1]).max() < 1e-6
        keep = (torch.arange(TOKENS) < k).expand(ITEMS, -1)
        kept = pooling.pool_kept(torch.from_numpy(tokens) * keep[..., None], keep, overlapping).numpy()
        assert np.abs(kept - prefixes[:, k - 1]).max() < 1e-6


@pytest.mark.parametrize("overlapping", [1, 3, 4])
@pytest.mark.parametrize("k", [1, 2, 3, 4, None])
def test_concatenate_equals_plain_loops(tokens: NDArray[np.float32], overlapping: int, k: int | None) -> None:
    joined = algebra.concatenate(tokens, overlapping, k)
    used = min(k or TOKENS, overlapping)
    assert joined.shape == (ITEMS, used * DIM)
    for b in range(ITEMS):
        parts = [x for j in range(used) for x in _unit(tokens[b, j].tolist())]
        assert joined[b] == pytest.approx(_unit(parts), abs=1e-6)
    assert np.linalg.norm(joined, axis=1) == pytest.approx(np.ones(ITEMS), abs=1e-6)


def test_maxsim_equals_plain_loops(tokens: NDArray[np.float32]) -> None:
    queries = np.random.default_rng(1).standard_normal((3, 2, DIM)).astype(np.float32)
    scores = algebra.maxsim(queries, tokens)
    assert scores.shape == (3, ITEMS)
    for q in range(3):
        for b in range(ITEMS):
            best = [
                max(_dot(_unit(query.tolist()), _unit(item.tolist())) for item in tokens[b]) for query in queries[q]
            ]
            assert scores[q, b] == pytest.approx(sum(best) / len(best), abs=1e-6)


def test_maxsim_of_an_item_with_itself_is_one(tokens: NDArray[np.float32]) -> None:
    assert np.diag(algebra.maxsim(tokens, tokens * 7)) == pytest.approx(np.ones(ITEMS), abs=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-13, 1e-6, 1.0, 1e15])
def test_normalizing_equals_the_torch_twin_at_every_scale(scale: float) -> None:
    x = (np.random.default_rng(2).standard_normal((7, 9)) * scale).astype(np.float32)
    mine, twin = algebra.l2_normalize(x), pooling.l2_normalize(torch.from_numpy(x)).numpy()
    assert np.isfinite(mine).all()
    assert np.abs(mine - twin).max() < 1e-6
    if scale >= 1e-6:
        assert np.linalg.norm(mine, axis=1) == pytest.approx(np.ones(7), abs=1e-6)


def test_half_precision_is_normalized_in_single() -> None:
    x = np.full((1, 100), 300, dtype=np.float16)  # whose square overflows float16
    assert algebra.l2_normalize(x) == pytest.approx(np.full((1, 100), 0.1), abs=1e-6)
    assert algebra.l2_normalize(x).dtype == np.float32


@pytest.mark.parametrize("k", [0, 5, -1, True, 2.0, "2"])
def test_k_out_of_range_names_the_range(tokens: NDArray[np.float32], k: int) -> None:
    for call in (
        lambda: algebra.pool(tokens, 3, k),
        lambda: algebra.concatenate(tokens, 3, k),
    ):
        with pytest.raises(TokenCountError, match=r"from 1 to 4.*got"):
            call()


def test_k_may_be_an_integer_of_numpy(tokens: NDArray[np.float32]) -> None:
    assert algebra.pool(tokens, 3, np.int64(3)).shape == (ITEMS, DIM)  # type: ignore[arg-type]


@pytest.mark.parametrize("output", algebra.OUTPUT_KINDS)
def test_a_selection_cuts_a_larger_batch_to_what_it_says(tokens: NDArray[np.float32], output: str) -> None:
    layout = algebra.TokenLayout(TOKENS, 3, DIM)
    embeddings = np.stack([algebra.pool(tokens, 3, k) for k in range(1, TOKENS + 1)], axis=1)
    references: dict[str, Callable[[int], NDArray[np.float32]]] = {
        "pooled": lambda k: algebra.pool(tokens, 3, k),
        "concat": lambda k: algebra.concatenate(tokens, 3, k),
        "tokens": lambda k: tokens[:, :k],
        "complementary": lambda _k: tokens[:, 3:],
    }
    chosen = layout.selections(output)
    assert [selection.k for selection in chosen] == ([TOKENS] if output == "complementary" else [1, 2, 3, 4])
    for selection in chosen:
        values = {"embeddings": embeddings, "tokens": tokens}[selection.graph_output]
        cut = selection.cut(values)
        np.testing.assert_allclose(cut, references[output](selection.k), atol=1e-6)
        assert cut.shape == (ITEMS, *selection.shape)
        assert cut[0].size == selection.values_per_item
        assert selection.empty().shape == (0, *selection.shape)
        assert selection == layout.select(None if selection.k == TOKENS else selection.k, output)


@pytest.mark.parametrize(
    ("k", "output", "sentence"),
    [
        (0, "pooled", "depth must be an integer from 1 to 4, the register tokens of this bundle; got 0."),
        (5, "tokens", "depth must be an integer from 1 to 4, the register tokens of this bundle; got 5."),
        (True, "pooled", "depth must be an integer from 1 to 4, the register tokens of this bundle; got True."),
        ("2", "pooled", "depth must be an integer from 1 to 4, the register tokens of this bundle; got '2'."),
        (3, "complementary", "complementary tokens come last, so they need all 4 tokens; leave depth out."),
        (None, "mean", "output is one of pooled, concat, tokens, complementary; got 'mean'."),
        (None, ["pooled"], "output is one of pooled, concat, tokens, complementary; got list."),
        (None, "attention", "output is one of pooled, concat, tokens, complementary; got 'attention'."),
    ],
)
def test_a_selection_that_cannot_be_meant_is_one_sentence(k: object, output: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        algebra.TokenLayout(4, 3, DIM).select(k, output, k_name="depth")
    assert str(refused.value) == sentence


def test_complementary_tokens_that_do_not_exist_are_refused() -> None:
    layout = algebra.TokenLayout(3, 3, DIM)
    assert layout.selections("complementary") == []
    with pytest.raises(UsageError, match="This bundle has no complementary tokens"):
        layout.select(None, "complementary")


@pytest.mark.parametrize(
    ("output", "whole", "k", "item_k", "compared"),
    [
        ("tokens", False, 1, None, (1, 4, 3)),
        ("tokens", False, 4, 2, (3, 2, 2)),
        ("pooled", True, 1, None, (1, 4, 3)),
        ("pooled", True, 2, 3, (2, 3, 3)),
        ("concat", False, 2, 2, (2, 2, 2)),
        ("concat", False, 3, None, (3, 4, 3)),
    ],
)
def test_both_sides_of_a_search_have_a_k(
    output: str, whole: bool, k: int, item_k: int | None, compared: tuple[int, int, int]
) -> None:
    stored = algebra.StoredTokens(output, 4, 3, whole)
    found = stored.compare(algebra.TokenLayout(4, 3, DIM).select(k, output), item_k)
    assert (found.query_tokens, found.item_k, found.item_tokens) == compared
    assert found.equal().query_tokens == found.equal().item_tokens == min(compared[0], compared[2])


@pytest.mark.parametrize(
    ("output", "k", "item_k", "sentence"),
    [
        ("tokens", 1, 5, "item_k must be an integer from 1 to 4, the register tokens of this index; got 5."),
        ("tokens", 1, True, "item_k must be an integer from 1 to 4, the register tokens of this index; got True."),
        (
            "pooled",
            1,
            2,
            "This index holds one vector of each item (pooled) that can only be read as it was stored, at k = 4; leave "
            "item_k out, or search an index of tokens. Got 2.",
        ),
        (
            "concat",
            1,
            2,
            "concat vectors compare at equal dimension: k = 1 gives 1 tokens of the query side by side, and item_k = 2 "
            "gives 2 of each item; give k and item_k one number, from 1 to 4.",
        ),
    ],
)
def test_sides_that_do_not_compare_are_one_sentence(output: str, k: int, item_k: int, sentence: str) -> None:
    query = algebra.TokenLayout(4, 3, DIM).select(k, output)
    with pytest.raises(UsageError) as refused:
        algebra.StoredTokens(output, 4, 3, whole=output == "pooled").compare(query, item_k)
    assert str(refused.value) == sentence


def test_a_truncated_layout_keeps_the_first_tokens() -> None:
    layout = algebra.TokenLayout(4, 3, DIM)
    found = [layout.truncated(count) for count in (1, 3, 4, 9)]
    assert [(one.num_register_tokens, one.num_overlapping_tokens) for one in found] == [(1, 1), (3, 3), (4, 3), (4, 3)]
