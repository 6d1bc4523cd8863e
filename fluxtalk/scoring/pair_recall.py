"""Recall of every pair of k: so many tokens of the query against so many of each item. Numpy only.

Export measures it on held-out pairs, and a search with limits (`fluxtalk.runtime.index.limits`) chooses from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.arrays import Floats
from fluxtalk.config import StrictConfig, require
from fluxtalk.scoring.metrics import MAX_SCORES, first_hit_ranks, ranks_of
from fluxtalk.tokens import CONCAT, MEAN, POOLED, SHARED_KINDS, TOKENS, concatenate, l2_normalize, pool

CUTOFF = 10
MOST_COUNTS = 8
"""Largest number of overlapping tokens of which every one is measured; of more, the powers of two and all."""

Table = list[list[float | None]]
"""Recall in 0..1: a row for each count of the query's tokens, a column for each of the item's; None if those do not
compare."""


@dataclass(frozen=True)
class PairRecall(StrictConfig):
    """Recall on held-out pairs, by direction, kind of output, and the number of overlapping tokens of both sides."""

    counts: list[int]
    """Numbers of overlapping tokens that were measured, rising from 1 to all."""
    recall: dict[str, dict[str, Table]]
    """Direction (``text->image``) to kind of output, one of `SHARED_KINDS`, to its table."""
    cutoff: int = CUTOFF
    """Results among which a right one counts."""

    def __post_init__(self) -> None:
        require(
            isinstance(self.counts, list)
            and all(type(count) is int for count in self.counts)
            and self.counts == sorted({1, *self.counts}),
            f"counts are integers that rise from 1; got {self.counts!r}",
        )
        size = len(self.counts)
        for direction, by_output in self.recall.items():
            for output, table in by_output.items():
                shape = {len(table), *map(len, table)}
                cells = itertools.chain.from_iterable(table)
                require(
                    output in SHARED_KINDS and shape == {size} and all(c is None or 0 <= c <= 1 for c in cells),
                    f"the recall of {output} in {direction} is a table of {size} by {size} shares",
                )

    def measured(self, tokens: int) -> int:
        """Find the largest number of tokens, at most ``tokens``, that was measured."""
        return max(count for count in self.counts if count <= tokens)

    def at(self, direction: str, output: str, query_tokens: int, item_tokens: int) -> float | None:
        """Recall of a pair, of the nearest smaller one that was measured; None if the two do not compare.

        Args:
            direction: one of ``recall``.
            output: one of `SHARED_KINDS`.
            query_tokens: overlapping tokens of the query, at least 1.
            item_tokens: overlapping tokens of each item, at least 1.
        """
        row, column = (self.counts.index(self.measured(tokens)) for tokens in (query_tokens, item_tokens))
        return self.recall[direction][output][row][column]

    def share(self, direction: str, output: str, query_tokens: int, item_tokens: int) -> float | None:
        """Recall of a pair as a share of the full recall, at most 1: that of all tokens on both sides; else as `at`."""
        found, full = (
            self.at(direction, output, *pair) for pair in ((query_tokens, item_tokens), (self.counts[-1],) * 2)
        )
        if found is None or full is None:
            return None
        return min(1.0, found / full) if full else 1.0


@dataclass(frozen=True)
class ServingCurve:
    """Gain and cost of each k in one precision, as the export measured them."""

    recall: PairRecall
    latency_ms: dict[str, dict[int, float]]
    """Modality to k to milliseconds of one item in the session; empty if the export's machine cannot run the graph."""
    latency_of: str
    """What was timed, for people."""

    @classmethod
    def from_serving(cls, serving: Mapping[str, Any]) -> ServingCurve:
        """Read the curve among what a bundle says of a precision (`PrecisionEntry.serving`).

        Raises:
            UsageError: its recall is malformed.
        """
        latency = serving.get("latency_ms", {})
        return cls(
            PairRecall.from_dict(serving["pair_recall"]),
            {modality: {int(k): float(ms) for k, ms in by_k.items()} for modality, by_k in latency.items()},
            serving.get("latency_of", ""),
        )


def measure_pair_recall(
    tokens: Mapping[str, Floats], ids: Mapping[str, NDArray[np.int64]], num_overlapping: int, summary: str = MEAN
) -> PairRecall:
    """Score every direction, kind of output and pair of token counts, comparing with every item.

    Args:
        tokens: modality to its items' register tokens (items, tokens, dim).
        ids: modality to the ids of its items, (items,); equal ones belong together. A query whose id has no item to be
            found does not count.
        num_overlapping: tokens, from the first, that are shared between modalities.
        summary: what ``pooled`` gives, one of `fluxtalk.tokens.SUMMARIES`; ``concat`` is measured once.
    """
    counts = token_counts(num_overlapping)
    one_vector = POOLED if summary == MEAN else summary
    recall: dict[str, dict[str, Table]] = {}
    for source, target in itertools.permutations(tokens, 2):
        asked = np.isin(ids[source], ids[target])
        if asked.any():
            sides = (tokens[source][asked], tokens[target], ids[source][asked], ids[target])
            recall[f"{source}->{target}"] = {
                **{o: _one_vector(o, *sides, num_overlapping, counts) for o in dict.fromkeys((one_vector, CONCAT))},
                TOKENS: _late_interaction(*sides, counts),
            }
    return PairRecall(counts, recall)


def token_counts(num_overlapping: int) -> list[int]:
    """List the numbers of tokens to measure: all up to `MOST_COUNTS`; of more, the powers of two and all."""
    every = range(1, num_overlapping + 1)
    if num_overlapping <= MOST_COUNTS:
        return list(every)
    return [count for count in every if count & (count - 1) == 0 or count == num_overlapping]


def _one_vector(
    output: str,
    queries: Floats,
    gallery: Floats,
    query_ids: NDArray[np.int64],
    gallery_ids: NDArray[np.int64],
    num_overlapping: int,
    counts: list[int],
) -> Table:
    combine = pool if output == POOLED else concatenate
    asked, found = ([combine(side, num_overlapping, k) for k in counts] for side in (queries, gallery))
    return [
        [
            _recall(first_hit_ranks(query, items, query_ids, gallery_ids)) if query.shape[1] == items.shape[1] else None
            for items in found
        ]
        for query in asked
    ]


def _late_interaction(
    queries: Floats,
    gallery: Floats,
    query_ids: NDArray[np.int64],
    gallery_ids: NDArray[np.int64],
    counts: list[int],
) -> Table:
    hits = np.zeros((len(counts), len(counts)))
    for rows, query_tokens, item_tokens, scores in _maxsim_of_pairs(queries, gallery, counts):
        right = query_ids[rows, None] == gallery_ids[None, :]
        cell = counts.index(query_tokens), counts.index(item_tokens)
        hits[cell] += (ranks_of(scores, right) < CUTOFF).sum()
    return [[round(float(cell), 4) for cell in row] for row in hits / len(queries)]


def _maxsim_of_pairs(
    queries: Floats, gallery: Floats, counts: list[int]
) -> Iterator[tuple[slice, int, int, NDArray[np.float32]]]:
    """`fluxtalk.tokens.maxsim` at every pair of counts, each product of two tokens computed once.

    Yields:
        the rows of a part of the queries, both counts, and their scores (queries, items), not divided by the count.
    """
    last = counts[-1]
    items = l2_normalize(gallery[:, :last]).transpose(1, 2, 0)
    size = max(1, MAX_SCORES // (len(gallery) * last))
    for start in range(0, len(queries), size):
        rows = slice(start, start + size)
        asked = l2_normalize(queries[rows, :last]).transpose(1, 0, 2)
        best = asked @ items[0]
        for j in range(last):
            np.maximum(best, asked @ items[j], out=best)
            if j + 1 in counts:
                total = np.zeros_like(best[0])
                for i in range(last):
                    total += best[i]
                    if i + 1 in counts:
                        yield rows, i + 1, j + 1, total


def _recall(ranks: NDArray[np.int64]) -> float:
    return round(float((ranks < CUTOFF).mean()), 4)
