"""The choice of k for both sides of a search, from a curve."""

from __future__ import annotations

from typing import Any

import pytest

from fluxtalk.errors import TokenCountError, UsageError
from fluxtalk.runtime.index.limits import Choice, Limits, Options, choose
from fluxtalk.scoring.pair_recall import PairRecall, ServingCurve
from fluxtalk.tokens import Comparison, StoredTokens, TokenLayout

LAYOUT = TokenLayout(4, 3, 8)
TABLES: dict[str, list[list[float | None]]] = {
    "tokens": [[0.50, 0.70, 0.76], [0.52, 0.74, 0.79], [0.50, 0.75, 0.80]],
    "pooled": [[0.40, 0.42, 0.44], [0.41, 0.44, 0.46], [0.42, 0.46, 0.50]],
    "concat": [[0.50, None, None], [None, 0.60, None], [None, None, 0.80]],
}
CURVE = ServingCurve(PairRecall([1, 2, 3], {"text->image": TABLES}), {"text": {1: 1.0, 2: 1.5, 3: 2.0, 4: 2.5}}, "")
STORED = {
    "tokens": StoredTokens("tokens", 4, 3),
    "pooled": StoredTokens("pooled", 2, 2, whole=True),
    "concat": StoredTokens("concat", 3, 3),
}


def bytes_of(comparison: Comparison) -> int:
    return 100 * (1 + comparison.item_tokens)


def chosen(output: str = "tokens", k: Any = None, item_k: Any = None, **limits: Any) -> Choice:
    options = Options(STORED[output], LAYOUT, k, item_k)
    return choose(options, Limits(**limits), CURVE, "text", "image", bytes_of)


@pytest.mark.parametrize(
    ("asked", "k", "item_k"),
    [
        # The fewest bytes of an item that keep the recall, then the smallest k of the query.
        ({"min_recall": 0.6}, 1, 1),
        ({"min_recall": 0.85}, 1, 2),
        ({"min_recall": 0.92}, 2, 2),
        ({"min_recall": 0.95}, 1, 3),
        ({"min_recall": 1}, 3, 3),
        # Without it, the best recall.
        ({"max_bytes": 300}, 3, 2),
        ({"max_bytes": 200}, 2, 1),
        ({"max_bytes": 10**9}, 3, 3),
        ({"deadline_ms": 1.4}, 1, 3),
        ({"deadline_ms": 1.5, "max_bytes": 300}, 2, 2),
        ({"min_recall": 0.93, "deadline_ms": 1.2}, 1, 3),
        # What is given stays.
        ({"min_recall": 0.9, "k": 3}, 3, 2),
        ({"min_recall": 0.9, "item_k": 4}, 1, 4),
        ({"max_bytes": 400, "k": 1, "item_k": 2}, 1, 2),
        ({"output": "pooled", "min_recall": 0.9}, 3, 2),
        ({"output": "pooled", "deadline_ms": 1.6}, 2, 2),
        ({"output": "concat", "min_recall": 0.7}, 2, 2),
        ({"output": "concat", "deadline_ms": 1.1}, 1, 1),
        ({"output": "concat", "min_recall": 0.7, "item_k": 3}, 3, 3),
        ({"output": "concat", "max_bytes": 900, "k": 4}, 4, 3),
    ],
    ids=str,
)
def test_the_choice(asked: dict[str, Any], k: int, item_k: int) -> None:
    found = chosen(**asked)
    assert (found.comparison.query.k, found.comparison.item_k) == (k, item_k)
    assert found.embed_ms == CURVE.latency_ms["text"][k]
    assert found.bytes_per_item == bytes_of(found.comparison)
    table = TABLES[asked.get("output", "tokens")]
    recall, full = table[min(k, 3) - 1][min(item_k, 3) - 1], table[2][2]
    assert recall is not None
    assert full is not None
    assert found.recall == recall
    assert found.recall_share == pytest.approx(recall / full)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"max_bytes": 199}, "No k of this search keeps max_bytes = 199: the smallest reads 200 bytes of an item"),
        ({"deadline_ms": 0.5}, "keeps deadline_ms = 0.5: the fastest takes 1 ms"),
        ({"min_recall": 0.99, "max_bytes": 300}, "min_recall = 0.99 and max_bytes = 300: the best has 1 of the full"),
        ({"min_recall": 0.99, "k": 1, "item_k": 1}, "the best has 0.625 of the full recall"),
        ({"min_recall": 0.5, "output": "pooled", "item_k": 1}, "can only be read as it was stored, at k = 2"),
        ({"min_recall": 0.5, "output": "concat", "k": 1, "item_k": 2}, "concat vectors compare at equal dimension"),
        ({"min_recall": 1.5}, "min_recall is a number from 0 to 1; got 1.5"),
        ({"max_bytes": True}, "max_bytes is a number of at least 1; got True"),
        ({"deadline_ms": "5"}, "deadline_ms is a number of at least 0; got '5'"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_one_sentence(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        chosen(**asked)


def test_a_k_that_is_out_of_range_is_named() -> None:
    with pytest.raises(TokenCountError, match="k must be an integer from 1 to 4"):
        chosen(min_recall=0.5, k=5)
    with pytest.raises(
        TokenCountError, match="item_k must be an integer from 1 to 4, the register tokens of this index"
    ):
        chosen(min_recall=0.5, item_k=0)


def test_a_curve_that_does_not_tell() -> None:
    options = Options(STORED["tokens"], LAYOUT)
    with pytest.raises(UsageError, match="export its run again with held-out pairs"):
        choose(options, Limits(0.9), None, "text", "image", bytes_of)
    with pytest.raises(UsageError, match="measured text->image, and not image->image; give k and item_k"):
        choose(options, Limits(0.9), CURVE, "image", "image", bytes_of)
    untimed = ServingCurve(CURVE.recall, {}, "")
    with pytest.raises(UsageError, match="not timed at export"):
        choose(options, Limits(deadline_ms=1), untimed, "text", "image", bytes_of)
    assert choose(options, Limits(0.9), untimed, "text", "image", bytes_of).embed_ms is None
