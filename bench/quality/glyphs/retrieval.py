"""Retrieval of a head on glyphs, by the numbers of tokens at which it can be compared."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.quality.heads import QueryFormerHead
from fluxtalk.datasets.pairs import Split
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.scoring.metrics import first_hit_ranks, recall_at
from fluxtalk.scoring.retrieval import Prefixes, retrieval
from fluxtalk.tokens import pool
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.results.score import counted_embeddings

HITS_AT = 10
_BYTES = np.dtype(np.float32).itemsize

Sources = Mapping[str, FeatureSource]


@dataclass(frozen=True)
class RerunPrefixes:
    """Items of a head without a prefix property: at each k it was run anew with its first k queries alone."""

    pooled: Sequence[NDArray[np.float32]]

    @property
    def num_tokens(self) -> int:
        """Largest k."""
        return len(self.pooled)

    def prefix(self, k: int) -> NDArray[np.float32]:
        """Normalized mean of the first k tokens, (B, D)."""
        return self.pooled[k - 1]


@dataclass(frozen=True)
class SelectedPrefixes:
    """Items at some numbers of tokens only, counted from 1."""

    items: Prefixes
    counts: Sequence[int]

    @property
    def num_tokens(self) -> int:
        """Count of token numbers."""
        return len(self.counts)

    def prefix(self, k: int) -> NDArray[np.float32]:
        """Vectors compared at the ``k``-th number of tokens."""
        return self.items.prefix(self.counts[k - 1])


def trained_counts(head: TokenHead) -> list[int]:
    """The numbers of tokens that training asked of a head: all prefixes of a nested one, else the whole."""
    whole = head.config.num_overlapping_tokens
    return list(range(1, whole + 1)) if head.config.nested_dropout_rate > 0 else [whole]


def validation_score(head: TokenHead, sources: Sources, split: Split) -> dict[str, Any]:
    """`retrieval` at what the head was trained for; its ``score`` chooses among a run's checkpoints."""
    counts = trained_counts(head)
    items = {m: SelectedPrefixes(found, counts) for m, found in compared_items(head, sources, split).items()}
    return retrieval(items, split)


def held_out_scores(head: TokenHead, sources: Sources, split: Split) -> dict[str, Any]:
    """Recall, the queries that found their partner, and what an item costs.

    Returns:
        ``recall[direction][k][cut-off]``; ``hits[direction][k]``, one bit per query (`packed`): whether the partner is
        among the first 10; ``bytes[k]`` of an item's vectors in float32. The head is scored at what it was trained
        for; a Q-Former-like one also with fewer queries.
    """
    items = compared_items(head, sources, split)
    counts = range(1, head.config.num_overlapping_tokens + 1) if _reruns(head) else trained_counts(head)
    ids = {m: split.items[m].groups[split.items[m].counted] for m in items}
    recall: dict[str, dict[str, Any]] = {}
    hits: dict[str, dict[str, str]] = {}
    for a, b in itertools.permutations(items, 2):
        ranks = {str(k): first_hit_ranks(items[a].prefix(k), items[b].prefix(k), ids[a], ids[b]) for k in counts}
        recall[f"{a}->{b}"] = {k: recall_at(r) for k, r in ranks.items()}
        hits[f"{a}->{b}"] = {k: packed(r < HITS_AT) for k, r in ranks.items()}
    sizes = {str(k): bytes_per_item(next(iter(items.values())).prefix(k)) for k in counts}
    return {"recall": recall, "hits": hits, "bytes": sizes}


def compared_items(head: TokenHead, sources: Sources, split: Split) -> dict[str, Prefixes]:
    """The counted items of every modality, at every number of tokens."""
    if not _reruns(head):
        return dict(counted_embeddings(head, sources, split))
    return {m: _rerun(head, m, source, np.flatnonzero(split.items[m].counted)) for m, source in sources.items()}


def bytes_per_item(vectors: NDArray[np.float32]) -> int:
    """Bytes of one item's vectors in float32; numbers that are 0 for every item are not stored."""
    return int(vectors.any(axis=0).sum()) * _BYTES


def packed(flags: NDArray[np.bool_]) -> str:
    """Flags as base64 of their bits, eight to a byte."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def unpacked(text: str, count: int) -> NDArray[np.bool_]:
    """The first ``count`` flags of `packed`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=count).astype(bool)


def _reruns(head: TokenHead) -> bool:
    return isinstance(head, QueryFormerHead)


def _rerun(head: TokenHead, modality: str, source: FeatureSource, rows: NDArray[np.int64]) -> RerunPrefixes:
    features, mask = source.batch(rows)
    was_training = head.training
    head.eval()
    pooled = []
    for k in range(1, head.config.num_overlapping_tokens + 1):
        with torch.inference_mode():
            tokens = head.tokens(modality, features, mask, torch.arange(k, device=head.device))
        pooled.append(pool(tokens.float().cpu().numpy(), k))
    head.train(was_training)
    return RerunPrefixes(pooled)
