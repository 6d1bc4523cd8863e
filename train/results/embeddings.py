"""What a head gives for the counted items of a split, ready for `fluxtalk.scoring.retrieval`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.datasets.pairs import Split
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.scoring.retrieval import ItemTokens
from fluxtalk.train.features.sources import FeatureSource

_BATCH = 512


def all_tokens(head: TokenHead, modality: str, source: FeatureSource, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The tokens of some rows of a source, without dropout: (rows, N, D)."""
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
    """What every counted item is compared by, of every modality."""
    config = head.config
    return {
        m: ItemTokens(
            all_tokens(head, m, source, np.flatnonzero(split.items[m].counted)),
            config.num_overlapping_tokens,
            config.aggregation,
        )
        for m, source in sources.items()
    }
