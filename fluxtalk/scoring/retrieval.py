"""Retrieval between modalities on held-out pairs, for every number of tokens. Numpy only.

Training scores heads with it; export scores lower precisions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fluxtalk.datasets.pairs import Split
from fluxtalk.errors import DataError
from fluxtalk.scoring.metrics import chance_at, first_hit_ranks, ndcg_at, recall_at, reciprocal_rank_at
from fluxtalk.tokens import concatenate, l2_normalize, pool


class Prefixes(Protocol):
    """Embedded items that can be compared at every number of tokens."""

    @property
    def num_tokens(self) -> int:
        """Largest k."""

    def prefix(self, k: int) -> NDArray[np.float32]:
        """Vectors that are compared at ``k`` tokens: (B, D), or (B, tokens, D) for late interaction."""


@dataclass(frozen=True)
class ItemTokens:
    """Tokens of a set of items, with the aggregation that compares them."""

    tokens_BND: NDArray[np.float32]
    num_overlapping: int
    aggregation: str = "mean"
    """One of `fluxtalk.config.AGGREGATIONS`."""

    @property
    def num_tokens(self) -> int:
        """Register tokens of each item, N."""
        return int(self.tokens_BND.shape[1])

    def prefix(self, k: int) -> NDArray[np.float32]:
        """Vectors that are compared at ``k`` tokens: (B, D), or (B, min(k, num_overlapping), D) for ``maxsim``."""
        if self.aggregation == "mean":
            return pool(self.tokens_BND, self.num_overlapping, k)
        if self.aggregation == "concat":
            return concatenate(self.tokens_BND, self.num_overlapping, k)
        return l2_normalize(self.tokens_BND[:, : min(k, self.num_overlapping)])


def retrieval(embeddings: Mapping[str, Prefixes], split: Split, ranking: bool = False) -> dict[str, Any]:
    """Score every direction, k and cut-off.

    A query counts if its id has an item to be found; a direction without such a query is left out.

    Args:
        embeddings: modality to its counted items, in the order of the split.
        split: the items' ids, and which of them were seen in training.
        ranking: also measure what other benchmarks report, at ten results: nDCG, which takes longer, and MRR.

    Returns:
        ``recall[direction][k][cut-off]``; ``recall_unseen``, the same over the queries whose id has no item
        that is identical to a training item; ``chance[direction][cut-off]``; ``score``, the mean of all recalls; and
        with ``ranking``, ``ndcg[direction][k]`` and ``mrr[direction][k]``. Directions are written ``text->image``; k
        and cut-offs are strings, as in JSON.

    Raises:
        DataError: no item has a partner in another modality.
    """
    recall: dict[str, dict[str, dict[str, float]]] = {}
    unseen: dict[str, dict[str, dict[str, float]]] = {}
    chance: dict[str, dict[str, float]] = {}
    ndcg: dict[str, dict[str, float]] = {}
    mrr: dict[str, dict[str, float]] = {}
    ids = {m: split.items[m].groups[split.items[m].counted] for m in embeddings}
    for source, target in itertools.permutations(embeddings, 2):
        asked = np.isin(ids[source], ids[target])
        if not asked.any():
            continue
        query_ids = ids[source][asked]
        direction = f"{source}->{target}"
        chance[direction] = chance_at(query_ids, ids[target])
        recall[direction], unseen[direction] = {}, {}
        new = ~split.seen[query_ids]
        for k in range(1, embeddings[source].num_tokens + 1):
            queries, gallery = embeddings[source].prefix(k)[asked], embeddings[target].prefix(k)
            ranks = first_hit_ranks(queries, gallery, query_ids, ids[target])
            recall[direction][str(k)] = recall_at(ranks)
            if ranking:
                mrr.setdefault(direction, {})[str(k)] = reciprocal_rank_at(ranks)
                ndcg.setdefault(direction, {})[str(k)] = ndcg_at(queries, gallery, query_ids, ids[target])
            if new.any():
                unseen[direction][str(k)] = recall_at(ranks[new])
    values = [value for by_k in recall.values() for by_cutoff in by_k.values() for value in by_cutoff.values()]
    if not values:
        raise DataError(f"No item of the {split.name} split has a partner in another modality; nothing can be scored.")
    scores = {"recall": recall, "recall_unseen": unseen, "chance": chance, "score": float(np.mean(values))}
    return {**scores, "ndcg": ndcg, "mrr": mrr} if ranking else scores
