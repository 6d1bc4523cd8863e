"""Vectors that items are compared by, and their similarity. The numpy twin is `fluxtalk.tokens`.

Shapes: B anchors, G candidates, K tokens, V vectors per item, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fluxtalk.model.head.pooling import l2_normalize, pool_kept


class Vectors(NamedTuple):
    """Vectors that items are compared by: one each, or several."""

    unit_BVD: Tensor
    """Vectors of length 1, (B, V, D)."""
    keep_BV: Tensor
    """bool; at least the first of each item."""

    def rows(self, part: slice) -> Vectors:
        """Return some of the items."""
        return Vectors(self.unit_BVD[part], self.keep_BV[part])


def aggregate(aggregation: str, tokens_BKD: Tensor, keep_BK: Tensor, num_overlapping: int) -> Vectors:
    """Make the vectors of the kept overlapping tokens.

    Args:
        aggregation: ``mean``, one vector of D: the normalized average; ``concat``, one of K D: the normalized
            tokens side by side, dropped ones zero; ``maxsim``, K of D: the normalized tokens.
        keep_BK: bool, a prefix of at least one token per item.
    """
    if aggregation == "mean":
        return single(pool_kept(tokens_BKD, keep_BK, num_overlapping))
    vectors = unit_tokens(tokens_BKD, keep_BK, num_overlapping)
    return single(l2_normalize(vectors.unit_BVD.flatten(1))) if aggregation == "concat" else vectors


def unit_tokens(tokens_BKD: Tensor, keep_BK: Tensor, num_overlapping: int) -> Vectors:
    """Normalize each kept overlapping token; dropped ones are 0."""
    keep = keep_BK[:, :num_overlapping]
    return Vectors(l2_normalize(tokens_BKD[:, :num_overlapping]) * keep[..., None], keep)


def single(unit_BD: Tensor) -> Vectors:
    """Wrap one vector per item."""
    return Vectors(unit_BD[:, None], torch.ones(len(unit_BD), 1, dtype=torch.bool, device=unit_BD.device))


def similarity(anchors: Vectors, candidates: Vectors, sharpness: float = 0.0) -> Tensor:
    """Compare (B, G): the cosine of single vectors; late interaction of several.

    Each kept vector of the anchor takes its most similar kept vector of the candidate, and the score is the mean
    over the anchor's vectors (Khattab and Zaharia 2020, "ColBERT", but for the mean, which keeps scores in -1..1).

    Args:
        sharpness: if above 0, the logarithm of the mean exponential at this sharpness instead of the maximum, so that
            every vector of the candidate learns; for training.
    """
    if anchors.unit_BVD.shape[1] == 1 and candidates.unit_BVD.shape[1] == 1:
        return anchors.unit_BVD[:, 0] @ candidates.unit_BVD[:, 0].T
    pairs_BVGV = torch.einsum("bvd,gwd->bvgw", anchors.unit_BVD, candidates.unit_BVD)
    pairs_BVGV = pairs_BVGV.masked_fill(~candidates.keep_BV[None, None], -torch.inf)
    if sharpness:
        count_G = candidates.keep_BV.sum(dim=1).to(pairs_BVGV.dtype)
        best_BVG = ((sharpness * pairs_BVGV).logsumexp(dim=-1) - count_G.log()) / sharpness
    else:
        best_BVG = pairs_BVGV.amax(dim=-1)
    keep_BV1 = anchors.keep_BV[..., None].to(best_BVG.dtype)
    return (best_BVG * keep_BV1).sum(dim=1) / keep_BV1.sum(dim=1)


def prefix_similarities(anchors: Vectors, candidates: Vectors, counts: Sequence[int]) -> list[Tensor]:
    """Compare the concatenations of the first tokens, at several numbers of them: a (B, G) cosine for each.

    Products of tokens add up, so those of a longer prefix are the shorter one's and a few more.

    Args:
        anchors: `unit_tokens`.
        candidates: likewise.
        counts: rising numbers of tokens; more than there are compare all.
    """
    cosines, total, start = [], torch.zeros((), device=anchors.unit_BVD.device), 0
    for count in counts:
        if start < min(count, anchors.unit_BVD.shape[1]):
            parts = [vectors.unit_BVD[:, start:count].flatten(1) for vectors in (anchors, candidates)]
            total = total + parts[0] @ parts[1].T
            start = count
        # The concatenation of n vectors of length 1 has the length sqrt(n).
        inverse = [vectors.keep_BV[:, :count].sum(dim=1).to(total.dtype).rsqrt() for vectors in (anchors, candidates)]
        cosines.append(total * inverse[0][:, None] * inverse[1])
    return cosines
