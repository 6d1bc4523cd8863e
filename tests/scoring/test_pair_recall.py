"""Recall of unequal numbers of tokens against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from fluxtalk.arrays import Floats
from fluxtalk.errors import UsageError
from fluxtalk.scoring import pair_recall
from fluxtalk.scoring.pair_recall import PairRecall, measure_pair_recall, token_counts

ITEMS, TOKENS, SHARED, DIM = 40, 4, 3, 5


def items(seed: int, count: int = ITEMS) -> Floats:
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(0).standard_normal((ITEMS, TOKENS, DIM))[:count]
    return (common + rng.standard_normal((count, TOKENS, DIM))).astype(np.float32)


def unit(x: Floats) -> Floats:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), np.float32)


def similarity_of(output: str, query: Floats, item: Floats) -> float:
    """The definition, of a query's and an item's compared tokens."""
    if output == "pooled":
        return float(unit(query.mean(axis=0)) @ unit(item.mean(axis=0)))
    if output == "concat":
        return float(unit(unit(query).ravel()) @ unit(unit(item).ravel()))
    return float(np.mean([max(float(q @ i) for i in unit(item)) for q in unit(query)]))


def slow_recall(output: str, queries: Floats, gallery: Floats, ids: tuple[list[int], list[int]]) -> float:
    hits, asked = 0, 0
    for query, query_id in zip(queries, ids[0], strict=True):
        if query_id not in ids[1]:
            continue
        asked += 1
        scores = [similarity_of(output, query, item) for item in gallery]
        best = max(score for score, id_ in zip(scores, ids[1], strict=True) if id_ == query_id)
        hits += sum(s >= best for s, id_ in zip(scores, ids[1], strict=True) if id_ != query_id) < 10
    return hits / asked


@pytest.mark.parametrize("most_scores", [2**24, 7 * ITEMS * SHARED])
def test_every_pair_equals_plain_loops(monkeypatch: pytest.MonkeyPatch, most_scores: int) -> None:
    monkeypatch.setattr(pair_recall, "MAX_SCORES", most_scores)
    tokens = {"text": items(1), "image": items(2, ITEMS - 3)}
    # Two texts of one thing, and texts without an image.
    ids = {"text": np.array([0, 0, *range(2, ITEMS)]), "image": np.arange(ITEMS - 3)}
    found = measure_pair_recall(tokens, ids, SHARED)
    assert found.counts == [1, 2, 3]
    assert found.recall.keys() == {"text->image", "image->text"}
    for source, target in (("text", "image"), ("image", "text")):
        for output in ("pooled", "concat", "tokens"):
            for q in found.counts:
                for i in found.counts:
                    recall = found.at(f"{source}->{target}", output, q, i)
                    if output == "concat" and q != i:
                        assert recall is None
                        continue
                    sides = tokens[source][:, :q], tokens[target][:, :i]
                    expected = slow_recall(output, *sides, (ids[source].tolist(), ids[target].tolist()))
                    assert recall == pytest.approx(expected, abs=1e-4)
    cells = {cell for row in found.recall["text->image"]["tokens"] for cell in row}
    assert len(cells) > 3  # not all one value, which would prove little
    assert PairRecall.from_dict(found.to_dict()) == found


def test_shares_are_of_all_tokens_and_never_above_one() -> None:
    curve = PairRecall([1, 2], {"a->b": {"tokens": [[0.4, 0.6], [0.3, 0.5]], "concat": [[0.1, None], [None, 0.0]]}})
    assert [curve.share("a->b", "tokens", 1, i) for i in (1, 2, 7)] == [0.8, 1.0, 1.0]
    assert curve.share("a->b", "concat", 1, 2) is None
    # Where nothing is found by all tokens, nothing is lost by fewer.
    assert curve.share("a->b", "concat", 1, 1) == 1.0


def test_many_tokens_are_measured_at_powers_of_two() -> None:
    assert token_counts(8) == list(range(1, 9))
    assert token_counts(21) == [1, 2, 4, 8, 16, 21]
    assert PairRecall([1, 2, 4, 8, 16, 21], {}).measured(20) == 16


@pytest.mark.parametrize(
    ("counts", "recall", "said"),
    [
        ([2, 1], {}, "rise from 1"),
        ([2], {}, "rise from 1"),
        ([1], {"a->b": {"tokens": [[1.5]]}}, "table of 1 by 1"),
        ([1, 2], {"a->b": {"tokens": [[1.0, 1.0]]}}, "table of 2 by 2"),
        ([1], {"a->b": {"attention": [[1.0]]}}, "table of 1 by 1"),
    ],
)
def test_a_malformed_curve_is_refused(counts: list[int], recall: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        PairRecall(counts, recall)
