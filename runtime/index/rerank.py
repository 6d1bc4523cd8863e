"""Coarse to fine with nested tokens: the first token finds candidates, MaxSim over several puts them in order."""

from __future__ import annotations

import numpy as np

from fluxtalk.arrays import Array, Floats, Integers
from fluxtalk.errors import IndexFileError
from fluxtalk.runtime.index.nearest_neighbors import NOT_FINITE, NearestNeighbors
from fluxtalk.runtime.vectors import directions, maxsim

MIN_CANDIDATES = 100
"""Default that costs little: putting a hundred items in order takes a fraction of a millisecond."""
_CANDIDATES_PER_ANSWER = 10


def candidates_for(count: int, candidates: int | None = None) -> int:
    """Number of items that are put in order for ``count`` answers; None is ten for each, and at least a hundred."""
    return max(count, candidates or max(MIN_CANDIDATES, _CANDIDATES_PER_ANSWER * count))


class Reranker:
    """Tokens of every item, which put the answers of a nearest-neighbor search in order. Thread-safe.

    Args:
        first: the first token of each item: the direction of its pooled embedding at k=1.
        tokens: (items, tokens, dim) in any number format of `fluxtalk.runtime.vectors`; it may be memory-mapped.
    """

    def __init__(self, first: NearestNeighbors, tokens: Array) -> None:
        self._first = first
        self._tokens = tokens

    def search(
        self, query: Floats, count: int, exact: bool | None = None, candidates: int | None = None
    ) -> tuple[Integers, Floats]:
        """Find the items whose tokens are most similar to a query's by MaxSim.

        Args:
            query: the overlapping tokens of one item, or the first few of them, (tokens, dim).
            count: largest number of answers.
            exact: as for `NearestNeighbors.search`, which finds the candidates.
            candidates: number of items put in order; None is ten for each answer, and at least `MIN_CANDIDATES`.

        Returns:
            Numbers and MaxSim scores, best first.

        Raises:
            UsageError, IndexFileError: as for `NearestNeighbors.search`.
        """
        wanted = candidates_for(count, candidates)
        # In the order in which they are on disk.
        found = np.sort(self._first.search(directions(query[0]), wanted, exact)[0])
        scores = maxsim(query, self._tokens[found])[0]
        if not np.isfinite(scores).all():
            raise IndexFileError(NOT_FINITE)
        order = np.argsort(-scores, kind="stable")[:count]
        return found[order], scores[order]
