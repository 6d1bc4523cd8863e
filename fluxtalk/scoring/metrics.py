"""Ranks, recall, MRR and nDCG of retrieval, in numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fluxtalk.tokens import maxsim

CUTOFFS = (1, 5, 10)
MAX_SCORES = 2**24
"""Scores that are held in memory at once, which bounds the queries of one part."""


def first_hit_ranks(
    queries: NDArray[np.floating],
    gallery: NDArray[np.floating],
    query_ids: NDArray[np.int64],
    gallery_ids: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Count, for each query, the wrong gallery items that score at least as high as its best right one.

    Ties count against the model, so that a constant embedding scores 0.

    Args:
        queries: (queries, dim), compared by dot product; or (queries, tokens, dim), by `fluxtalk.tokens.maxsim`.
        gallery: (items, dim) or (items, tokens, dim), as the queries.
        query_ids: (queries,), all of them among ``gallery_ids``.
        gallery_ids: (items,).

    Returns:
        int64 (queries,): 0 if a right item comes first.
    """
    ranks = np.empty(len(queries), dtype=np.int64)
    for rows, scores in _score_parts(queries, gallery):
        right = query_ids[rows, None] == gallery_ids[None, :]
        ranks[rows] = ranks_of(scores, right)
    return ranks


def ranks_of(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count, for each query, the wrong items that score at least as high as its best right one: int64 (queries,).

    Args:
        scores: (queries, items).
        right: (queries, items), True if the item answers the query; one at least in each row.
    """
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    # Not `scores >= best`: NaN counts against the model too.
    ranks: NDArray[np.int64] = (~(scores < best) & ~right).sum(axis=1)
    return ranks


def recall_at(ranks: NDArray[np.int64], cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Share of queries with a right item among the first c, by cut-off c."""
    return {str(c): float((ranks < c).mean()) for c in cutoffs}


def reciprocal_rank_at(ranks: NDArray[np.int64], cutoff: int = 10) -> float:
    """Mean over the queries of 1 / position of the first right item, 0 beyond the cut-off (MRR)."""
    return float(np.where(ranks < cutoff, 1 / (ranks + 1), 0.0).mean())


def ndcg_at(
    queries: NDArray[np.floating],
    gallery: NDArray[np.floating],
    query_ids: NDArray[np.int64],
    gallery_ids: NDArray[np.int64],
    cutoff: int = 10,
) -> float:
    """Mean over the queries of the normalized discounted cumulative gain (nDCG) with all right items worth the same.

    ``sum of 1 / log2(1 + position)`` over the right items among the first ``cutoff``, positions from 1, divided by what
    an order gives that has all right items first. Ties count against the model.

    Args:
        queries, gallery, query_ids, gallery_ids: as for `first_hit_ranks`.
        cutoff: positions that count.
    """
    gains = 1 / np.log2(np.arange(2, cutoff + 2))
    ideal = np.concatenate([[0.0], np.cumsum(gains)])
    found = np.zeros(len(queries))
    for rows, scores in _score_parts(queries, gallery):
        right = query_ids[rows, None] == gallery_ids[None, :]
        # The scores of right items, the best first. NaN counts against the model.
        hits = -np.sort(-np.where(right & ~np.isnan(scores), scores, -np.inf), axis=1)[:, :cutoff]
        counts = np.minimum(right.sum(axis=1), cutoff)
        for place in range(int(counts.max())):
            position = place + (~(scores < hits[:, place, None]) & ~right).sum(axis=1)
            counted = np.flatnonzero((place < counts) & (position < cutoff))
            found[rows][counted] += gains[position[counted]]
        found[rows] /= ideal[counts]
    return float(found.mean())


def chance_at(
    query_ids: NDArray[np.int64], gallery_ids: NDArray[np.int64], cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, float]:
    """Expected recall of a random order of the gallery, by cut-off."""
    total = len(gallery_ids)
    unique, counts = np.unique(gallery_ids, return_counts=True)
    right = counts[np.searchsorted(unique, query_ids)]
    chances = {}
    for c in cutoffs:
        # Probability that none of c items, drawn without replacement, is right.
        miss = np.ones(len(query_ids))
        for drawn in range(min(c, total)):
            miss *= np.maximum(total - right - drawn, 0) / (total - drawn)
        chances[str(c)] = float(1 - miss.mean())
    return chances


def _score_parts(
    queries: NDArray[np.floating], gallery: NDArray[np.floating]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the rows of some queries, and their scores with every item, (rows, items)."""
    gallery = gallery.astype(np.float32, copy=False)
    pairs = queries.shape[1] * gallery.shape[1] if queries.ndim == 3 else 1
    chunk = max(1, MAX_SCORES // max(1, len(gallery) * pairs))
    for start in range(0, len(queries), chunk):
        rows = slice(start, start + chunk)
        part = queries[rows].astype(np.float32, copy=False)
        yield rows, maxsim(part, gallery) if queries.ndim == 3 else part @ gallery.T
