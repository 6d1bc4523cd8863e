"""Hard negatives: once an epoch, each training id's nearest other ids by the head's own embeddings.

In: a head and the training split's features. Out: a table of ids, by which the sampler composes batches. An id that is
nearly as near as the positive is more likely another positive than a negative, and is left out.

Shapes: B anchors at a time, G ids, N negatives of each.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fluxtalk.errors import UsageError
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.losses.contrastive import MAX_SCORES
from fluxtalk.model.losses.similarity import Vectors, aggregate, similarity
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.loop.sampler import ABSENT, PairSampler

_BATCH = 512
"""Items embedded at a time."""


class HardNegatives:
    """The negatives of the epoch at hand: mined by the thread that trains, waited for by the one that reads ahead.

    The first epoch has none, because an untrained head's neighbors mean nothing.

    Args:
        processes: of the training; mining is not shared among several.

    Raises:
        UsageError: a batch has no room for an anchor with its negatives, or there are several processes.
    """

    def __init__(
        self, config: TrainConfig, sampler: PairSampler, sources: Mapping[str, FeatureSource], processes: int
    ) -> None:
        if processes > 1:
            raise UsageError(
                f"--hard-negatives mines in one process, not {processes}; train without torchrun, or without it."
            )
        if config.hard_negatives >= sampler.ids_per_batch:
            raise UsageError(
                f"--hard-negatives {config.hard_negatives} needs batches of {config.hard_negatives + 1} ids or more; "
                f"one holds {sampler.ids_per_batch}."
            )
        self._config = config
        self._sampler = sampler
        self._sources = sources
        self._epoch = 0
        self._changed = threading.Condition()
        self._ended = False

    def prepare(self, epoch: int, head: TokenHead) -> None:
        """Mine the negatives of an epoch, unless they are known."""
        if epoch != self._epoch:
            self._use(mine(head, self._sources, self._sampler.first_items(), self._config), epoch)

    def wait(self, epoch: int) -> bool:
        """Wait until an epoch's negatives are known; False if training ended before."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._epoch >= epoch)
            return not self._ended

    def end(self) -> None:
        """Let who waits go."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def state(self) -> dict[str, Tensor]:
        """Return all that resuming within an epoch needs."""
        table = self._sampler.negatives
        if table is None:
            return {}
        return {"hard_negatives.table": torch.from_numpy(table), "hard_negatives.epoch": torch.tensor(self._epoch)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        if "hard_negatives.table" in state:
            self._use(state["hard_negatives.table"].cpu().numpy(), int(state["hard_negatives.epoch"].item()))

    def _use(self, table: NDArray[np.int64], epoch: int) -> None:
        with self._changed:
            self._sampler.negatives, self._epoch = table, epoch
            self._changed.notify_all()


def mine(
    head: TokenHead,
    sources: Mapping[str, FeatureSource],
    rows: Mapping[str, NDArray[np.int64]],
    config: TrainConfig,
) -> NDArray[np.int64]:
    """Find each id's nearest other ids, (G, N), hardest first; `ABSENT` where too few are left.

    Ids are compared across modalities: the mean similarity over all ordered pairs of modalities that both have. Left
    out is what scores above ``max_score``, or less than either margin below the id's own pair. All pairs of ids are
    scored, a block at a time: G^2 products.

    Args:
        rows: modality to (G,), an item of each id; `ABSENT` if it has none.
        config: its ``hard_negative...`` options.
    """
    vectors = {m: _vectors(head, m, source, rows[m]) for m, source in sources.items()}
    present = {m: torch.from_numpy(rows[m] >= 0).to(head.device) for m in sources}
    ids = len(next(iter(rows.values())))
    widest = max(v.unit_BVD.shape[1] for v in vectors.values())
    size = max(1, MAX_SCORES // (ids * widest**2))
    parts = [_nearest(vectors, present, slice(first, min(first + size, ids)), config) for first in range(0, ids, size)]
    return torch.cat(parts).cpu().numpy()


def _vectors(head: TokenHead, modality: str, source: FeatureSource, rows: NDArray[np.int64]) -> Vectors:
    """Embed one item of each id without dropout."""
    sizes = head.config
    index = torch.arange(sizes.num_register_tokens, device=head.device)
    was_training, parts = head.training, []
    head.eval()
    for first in range(0, len(rows), _BATCH):
        features, mask = source.batch(rows[first : first + _BATCH])
        with torch.no_grad():
            tokens = head.tokens(modality, features, mask, index)
        keep = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        parts.append(aggregate(sizes.aggregation, tokens, keep, sizes.num_overlapping_tokens))
    head.train(was_training)
    return Vectors(torch.cat([p.unit_BVD for p in parts]), torch.cat([p.keep_BV for p in parts]))


def _nearest(
    vectors: Mapping[str, Vectors], present: Mapping[str, Tensor], anchors: slice, config: TrainConfig
) -> Tensor:
    """Find the nearest ids of some, (B, N)."""
    pairs = list(itertools.permutations(vectors, 2))
    both_BG = [present[a][anchors, None] & present[b][None] for a, b in pairs]
    scores_BG = [
        similarity(vectors[a].rows(anchors), vectors[b]) * both for (a, b), both in zip(pairs, both_BG, strict=True)
    ]
    count_BG = torch.stack(both_BG).sum(dim=0)
    score_BG = torch.stack(scores_BG).sum(dim=0) / count_BG.clamp_min(1)
    numbers = torch.arange(anchors.start, anchors.stop, device=score_BG.device)
    own_B1 = score_BG.gather(1, numbers[:, None])
    has_own_B1 = count_BG.gather(1, numbers[:, None]) > 0
    margin_B1 = (config.hard_negative_relative_margin * own_B1.abs()).clamp_min(config.hard_negative_margin)
    limit_B1 = (own_B1 - margin_B1).clamp_max(config.hard_negative_max_score)
    allowed_BG = (score_BG <= limit_B1) & (count_BG > 0) & has_own_B1
    allowed_BG.scatter_(1, numbers[:, None], False)
    count = min(config.hard_negatives, score_BG.shape[1])
    best = score_BG.masked_fill(~allowed_BG, -torch.inf).topk(count, dim=1)
    return best.indices.masked_fill(best.values.isinf(), ABSENT)
