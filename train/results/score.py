"""Scoring a head by retrieval on the counted items of a split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.datasets.pairs import Split
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.scoring.retrieval import ItemTokens, retrieval
from fluxtalk.train.features.sources import FeatureSource

_BATCH = 512


def all_tokens(head: TokenHead, modality: str, source: FeatureSource, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compute the tokens of some rows of a source, without dropout: (rows, N, D)."""
    index = torch.arange(head.config.num_register_tokens, device=head.device)
    was_training = head.training
    head.eval()
    parts = []
    for start in range(0, len(rows), _BATCH):
        features, mask = source.batch(rows[start : start + _BATCH])
        with torch.inference_mode():
            parts.append(head.tokens(modality, features, mask, index).float().cpu().numpy())
    head.train(was_training)
    return np.concatenate(parts)


def counted_embeddings(head: TokenHead, sources: Mapping[str, FeatureSource], split: Split) -> dict[str, ItemTokens]:
    """Compute the tokens by which every modality's counted items are compared."""
    config = head.config
    return {
        m: ItemTokens(
            all_tokens(head, m, source, np.flatnonzero(split.items[m].counted)),
            config.num_overlapping_tokens,
            config.aggregation,
        )
        for m, source in sources.items()
    }


def score_head(
    head: TokenHead, sources: Mapping[str, FeatureSource], split: Split, ranking: bool = False
) -> dict[str, Any]:
    """Score a head by `fluxtalk.scoring.retrieval` on a split."""
    return retrieval(counted_embeddings(head, sources, split), split, ranking)


def recall_lines(
    recall: Mapping[str, Mapping[str, Mapping[str, float]]],
    ranking: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> list[str]:
    """Format recall as a table, one line per direction and k.

    Args:
        ranking: names to further numbers by direction and k, shown beside it.
    """
    lines = []
    for direction, by_k in recall.items():
        for k, by_cutoff in by_k.items():
            cells = "  ".join(f"R@{cutoff} {100 * value:5.1f} %" for cutoff, value in by_cutoff.items())
            more = "".join(f"  {name} {100 * found[direction][k]:5.1f} %" for name, found in (ranking or {}).items())
            lines.append(f"  {direction:<14} k={k}  {cells}{more}")
    return lines
