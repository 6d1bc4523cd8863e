"""Retrieval between modalities on held-out pairs, for every number of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.datasets.pairs import Split
from fluxtalk.metrics import chance_at, first_hit_ranks, recall_at
from fluxtalk.model.registers import RegisterTokenModule
from fluxtalk.train.features import FeatureSource

_BATCH = 512


def counted_embeddings(
    head: RegisterTokenModule, sources: Mapping[str, FeatureSource], split: Split
) -> dict[str, NDArray[np.float32]]:
    """Every prefix's pooled embedding of every counted item: modality to (items, N, D)."""
    device = head.registers.device
    index = torch.arange(head.config.num_register_tokens, device=device)
    was_training = head.training
    head.eval()
    embeddings = {}
    for modality, source in sources.items():
        rows = np.flatnonzero(split.items[modality].counted)
        parts = []
        for start in range(0, len(rows), _BATCH):
            features, mask = source.batch(rows[start : start + _BATCH])
            with torch.inference_mode():
                parts.append(head.embeddings(head.tokens(modality, features, mask, index), index).cpu().numpy())
        embeddings[modality] = np.concatenate(parts)
    head.train(was_training)
    return embeddings


def retrieval(embeddings: Mapping[str, NDArray[np.float32]], split: Split) -> dict[str, Any]:
    """Recall of every direction, k and cut-off.

    Args:
        embeddings: modality to (counted items, N, D), as `counted_embeddings` gives.

    Returns:
        ``recall[direction][k][cut-off]``; ``recall_unseen``, the same over the queries whose id has no item
        that is identical to a training item; ``chance[direction][cut-off]``; and ``score``, the mean of all
        recalls. Directions are written ``text->image``; k and cut-offs are strings, as in JSON.
    """
    recall: dict[str, dict[str, dict[str, float]]] = {}
    unseen: dict[str, dict[str, dict[str, float]]] = {}
    chance: dict[str, dict[str, float]] = {}
    ids = {m: split.items[m].groups[split.items[m].counted] for m in embeddings}
    for source, target in itertools.permutations(embeddings, 2):
        direction = f"{source}->{target}"
        chance[direction] = chance_at(ids[source], ids[target])
        recall[direction], unseen[direction] = {}, {}
        new = ~split.seen[ids[source]]
        for k in range(1, embeddings[source].shape[1] + 1):
            ranks = first_hit_ranks(
                embeddings[source][:, k - 1], embeddings[target][:, k - 1], ids[source], ids[target]
            )
            recall[direction][str(k)] = recall_at(ranks)
            if new.any():
                unseen[direction][str(k)] = recall_at(ranks[new])
    values = [value for by_k in recall.values() for by_cutoff in by_k.values() for value in by_cutoff.values()]
    return {"recall": recall, "recall_unseen": unseen, "chance": chance, "score": float(np.mean(values))}
