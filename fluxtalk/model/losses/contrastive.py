"""Contrastive losses over ids: InfoNCE and sigmoid, in memory that grows linearly with the batch.

Shapes: B anchors (this process's), G candidates (of all processes), V vectors per item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fluxtalk.model.losses.similarity import Vectors, prefix_similarities, similarity

MAX_SCORES = 2**23
"""Scores held at once: 32 MB in float32, of which a loss and its gradient need about eight copies."""

RowLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits_BG, positive_BG, valid_G) to the loss of each anchor, (B,)."""


class Candidates(NamedTuple):
    """Items that anchors are contrasted with."""

    vectors: Vectors
    ids_G: Tensor
    valid_G: Tensor
    """bool: False takes a candidate out, as positive and as negative."""


def info_nce(logits_BG: Tensor, positive_BG: Tensor, valid_G: Tensor) -> Tensor:
    r"""Compute InfoNCE of each anchor, (B,), with several positives; 0 for an anchor without any.

    .. math:: \ell_i = \frac{1}{|P_i|} \sum_{p \in P_i} -\log
              \frac{e^{s_{ip}}}{e^{s_{ip}} + \sum_{j \notin P_i} e^{s_{ij}}}

    The mean over positives stands outside the logarithm, as in L_out of Khosla et al. 2020, "Supervised
    Contrastive Learning"; another positive is never a negative. With one positive per anchor it is the
    cross-entropy of van den Oord et al. 2018, "CPC".
    """
    positive_BG = positive_BG & valid_G
    negatives = logits_BG.masked_fill(positive_BG | ~valid_G, -torch.inf).logsumexp(dim=1)
    # -log(e^p / (e^p + e^n)) = softplus(n - p), at the positives alone: they are few.
    rows, columns = positive_BG.nonzero(as_tuple=True)
    each = F.softplus(negatives[rows] - logits_BG[rows, columns])
    return torch.zeros_like(negatives).index_add(0, rows, each) / positive_BG.sum(dim=1).clamp_min(1)


def sigmoid_loss(logits_BG: Tensor, positive_BG: Tensor, valid_G: Tensor) -> Tensor:
    r"""Compute the sigmoid loss of each anchor, (B,): every pair on its own.

    .. math:: \ell_i = -\sum_j \log \sigma(z_{ij} s_{ij}), \quad z_{ij} = 1 \text{ for a positive, else } -1

    Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (SigLIP).
    """
    signs = torch.where(positive_BG, 1.0, -1.0).to(logits_BG.dtype)
    return -(F.logsigmoid(signs * logits_BG) * valid_G).sum(dim=1)


def contrast(
    row_loss: RowLoss,
    anchors: Vectors,
    anchor_ids_B: Tensor,
    candidates: Candidates,
    scale: Tensor,
    bias: Tensor | None = None,
    max_scores: int = MAX_SCORES,
    sharpness: float = 0.0,
) -> Tensor:
    """Compute the loss of each anchor against all candidates, (B,); a positive is a candidate with the anchor's id.

    All scores at once need B G numbers several times over. If they are more than ``max_scores``, the anchors go
    in blocks, and each block's scores are computed again for its gradient (activation checkpointing), so that
    memory grows with B + G alone. The numbers are the same.

    Args:
        scale: scalar, the inverse temperature; logits are ``scale * similarity + bias``.
        sharpness: see `similarity`.
    """

    def block(vectors: Vectors, ids: Tensor, others: Vectors, scale: Tensor, bias: Tensor | None) -> Tensor:
        logits = scale * similarity(vectors, others, sharpness)
        if bias is not None:
            logits = logits + bias
        return row_loss(logits, ids[:, None] == candidates.ids_G[None], candidates.valid_G)

    per_anchor = anchors.unit_BVD.shape[1] * candidates.vectors.unit_BVD.shape[1] * len(candidates.ids_G)
    return _in_blocks(block, anchors, anchor_ids_B, candidates, (scale, bias), max_scores // max(1, per_anchor))


def contrast_prefixes(
    row_loss: RowLoss,
    anchors: Vectors,
    anchor_ids_B: Tensor,
    candidates: Candidates,
    counts: Sequence[int],
    scales: Tensor,
    bias: Tensor | None = None,
    max_scores: int = MAX_SCORES,
) -> Tensor:
    """Compute what `contrast` does for the concatenations of the first tokens, at several numbers: (len(counts), B).

    Args:
        anchors: `fluxtalk.model.losses.similarity.unit_tokens`; the candidates' vectors likewise.
        counts: rising numbers of tokens.
        scales: (len(counts),), an inverse temperature for each.
    """

    def block(vectors: Vectors, ids: Tensor, others: Vectors, scales: Tensor, bias: Tensor | None) -> Tensor:
        positive = ids[:, None] == candidates.ids_G[None]
        losses = []
        for scale, cosine in zip(scales, prefix_similarities(vectors, others, counts), strict=True):
            logits = scale * cosine
            losses.append(row_loss(logits if bias is None else logits + bias, positive, candidates.valid_G))
        return torch.stack(losses)

    per_anchor = len(counts) * len(candidates.ids_G)
    return _in_blocks(block, anchors, anchor_ids_B, candidates, (scales, bias), max_scores // max(1, per_anchor))


def _in_blocks(
    block: Callable[[Vectors, Tensor, Vectors, Tensor, Tensor | None], Tensor],
    anchors: Vectors,
    anchor_ids_B: Tensor,
    candidates: Candidates,
    scale_and_bias: tuple[Tensor, Tensor | None],
    size: int,
) -> Tensor:
    """Compute the losses (..., B) of so many anchors at a time, each again for its gradient if there are several."""
    others, size = candidates.vectors, max(1, size)
    if len(anchor_ids_B) <= size:
        return block(anchors, anchor_ids_B, others, *scale_and_bias)
    parts = []
    for start in range(0, len(anchor_ids_B), size):
        part = slice(start, start + size)
        parts.append(
            checkpoint(
                block,
                anchors.rows(part),
                anchor_ids_B[part],
                others,
                *scale_and_bias,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    return torch.cat(parts, dim=-1)
