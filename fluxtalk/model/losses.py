"""Losses: contrastive on the overlapping tokens, regularisation of the complementary ones.

Shapes: B this process's samples, G samples of all processes, D head dimension.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxtalk.errors import UsageError
from fluxtalk.model.pooling import l2_normalise
from fluxtalk.model.registers import RegisterOutputs
from fluxtalk.model.world import OneProcess, World

INITIAL_TEMPERATURE = 0.07
MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class LossTerms:
    """The loss of one batch. The mean of ``total`` over all processes is the loss of the global batch."""

    total: Tensor
    contrastive: Tensor
    complementary_l2: Tensor
    complementary_diversity: Tensor

    def items(self) -> dict[str, Tensor]:
        """Name to detached scalar."""
        return {name: getattr(self, name).detach() for name in self.__dataclass_fields__}


def info_nce_rows(
    anchors_BD: Tensor, candidates_GD: Tensor, anchor_ids_B: Tensor, candidate_ids_G: Tensor, scale: Tensor
) -> Tensor:
    r"""InfoNCE of each anchor, (B,), with every candidate of the anchor's id as a positive.

    .. math:: \ell_i = \frac{1}{|P_i|} \sum_{p \in P_i} -\log
              \frac{e^{s_{ip}}}{e^{s_{ip}} + \sum_{j: id_j \ne id_i} e^{s_{ij}}}

    with :math:`s = scale \cdot a_i \cdot c_j`. The mean over positives stands outside the logarithm, as in
    L_out of Khosla et al. 2020, "Supervised Contrastive Learning"; another positive is never a negative.
    With one positive per anchor it is the cross-entropy of van den Oord et al. 2018, "CPC".

    Args:
        anchors_BD: of length 1.
        candidates_GD: of length 1.
        scale: scalar, the inverse temperature.
    """
    logits = scale * (anchors_BD.float() @ candidates_GD.float().T)
    positive = anchor_ids_B[:, None] == candidate_ids_G[None, :]
    negatives = logits.masked_fill(positive, -torch.inf).logsumexp(dim=1)
    # -log(e^p / (e^p + e^n)) = softplus(n - p), at the positives alone: they are few.
    rows, columns = positive.nonzero(as_tuple=True)
    each = F.softplus(negatives[rows] - logits[rows, columns])
    return torch.zeros_like(negatives).index_add(0, rows, each) / positive.sum(dim=1)


def complementary_l2(tokens_BCD: Tensor, keep_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over kept complementary tokens of their squared norm / D, and how many there are."""
    each = tokens_BCD.float().square().mean(dim=-1)
    return (each * keep_BC).sum(), keep_BC.sum()


def complementary_diversity(tokens_BKD: Tensor, keep_BK: Tensor, num_overlapping: int) -> tuple[Tensor, Tensor]:
    """Sum of squared cosines between each kept complementary token and every other kept token of its sample.

    Overlapping tokens take no gradient: they are where they are for the contrastive loss, and the
    complementary ones keep away from them. Also returns the number of such pairs.
    """
    unit = l2_normalise(tokens_BKD)
    others = torch.cat([unit[:, :num_overlapping].detach(), unit[:, num_overlapping:]], dim=1)
    cosine = unit[:, num_overlapping:] @ others.transpose(1, 2)
    itself = torch.eye(tokens_BKD.shape[1], dtype=torch.bool, device=unit.device)[num_overlapping:]
    counts = keep_BK[:, num_overlapping:, None] & keep_BK[:, None, :] & ~itself
    return (cosine.square() * counts).sum(), counts.sum()


class RegisterTokenLoss(nn.Module):
    """Contrastive loss of the pooled overlapping tokens + weighted regularisation of the complementary ones.

    ``total = contrastive + complementary_reg_weight * (l2 + diversity)``. Contrastive: symmetric
    `info_nce_rows`, averaged over all pairs of modalities. L2: mean over kept complementary tokens of the
    squared norm / D. Diversity: mean squared cosine of `complementary_diversity`.

    Args:
        complementary_reg_weight: at least 0.
        world: the processes that share the batch.
    """

    def __init__(self, complementary_reg_weight: float = 0.01, world: World | None = None) -> None:
        super().__init__()
        if not complementary_reg_weight >= 0:
            raise UsageError(f"complementary_reg_weight is at least 0; got {complementary_reg_weight}.")
        self.complementary_reg_weight = complementary_reg_weight
        self.world: World = world or OneProcess()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))

    def clamp_temperature(self) -> None:
        """Bring the temperature back into 0.01..1; call it after each optimiser step."""
        with torch.no_grad():
            self.log_scale.clamp_(0.0, MAX_LOG_SCALE)

    def forward(self, outputs: RegisterOutputs, ids: Tensor) -> LossTerms:
        """The loss of one batch.

        Args:
            outputs: of at least two modalities, row i of each belonging together.
            ids: int64 (B,); rows of equal id are positives of each other, never negatives.

        Raises:
            UsageError: there are fewer than two modalities, or ``ids`` has another length.
        """
        if len(outputs.tokens) < 2:
            raise UsageError(
                f"The contrastive loss needs two modalities or more; got {', '.join(outputs.tokens) or 'none'}."
            )
        if any(len(tokens) != len(ids) for tokens in outputs.tokens.values()):
            raise UsageError(f"Each row of a batch needs one id; got {len(ids)} ids.")
        # Autocast would make the logits bfloat16, whatever their inputs are.
        with torch.autocast(ids.device.type, enabled=False):
            contrastive = self._contrastive(outputs, ids)
            l2, diversity = self._complementary(outputs)
        total = contrastive + self.complementary_reg_weight * (l2 + diversity)
        return LossTerms(total, contrastive, l2, diversity)

    def _contrastive(self, outputs: RegisterOutputs, ids: Tensor) -> Tensor:
        pooled = {modality: outputs.pooled(modality) for modality in outputs.tokens}
        everywhere = {modality: self.world.gather(rows) for modality, rows in pooled.items()}
        all_ids = self.world.gather(ids)
        scale = self.log_scale.exp()
        directions = list(itertools.permutations(pooled, 2))
        rows = [info_nce_rows(pooled[a], everywhere[b], ids, all_ids, scale) for a, b in directions]
        return torch.stack(rows).mean()

    def _complementary(self, outputs: RegisterOutputs) -> tuple[Tensor, Tensor]:
        first = outputs.num_overlapping
        sums: list[tuple[Tensor, Tensor]] = []
        pairs: list[tuple[Tensor, Tensor]] = []
        for modality, tokens in outputs.tokens.items():
            keep = outputs.keep[modality]
            sums.append(complementary_l2(tokens[:, first:], keep[:, first:]))
            pairs.append(complementary_diversity(tokens, keep, first))
        return self._mean(sums), self._mean(pairs)

    def _mean(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean over what all processes kept, scaled so that the mean over processes is the global one."""
        value = torch.stack([value for value, _ in parts]).sum()
        count = torch.stack([count for _, count in parts]).sum().to(value.dtype)
        return value * self.world.size / self.world.total(count).clamp_min(1)
