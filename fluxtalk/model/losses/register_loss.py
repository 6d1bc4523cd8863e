"""The training loss: contrastive on the overlapping tokens, regularized and, optionally, trained complementary ones.

The pieces are pure functions in `fluxtalk.model.losses.contrastive` and `fluxtalk.model.losses.complementary`.
Shapes: B this process's samples, G samples of all processes, D head dimension.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fluxtalk.config import AGGREGATIONS, CONTRASTIVE_LOSSES
from fluxtalk.errors import UsageError
from fluxtalk.model.head.token_head import RegisterOutputs
from fluxtalk.model.losses.complementary import (
    ComplementaryInputs,
    ComplementaryObjective,
    complementary_diversity,
    complementary_l2,
)
from fluxtalk.model.losses.contrastive import Candidates, contrast, contrast_prefixes, info_nce, sigmoid_loss
from fluxtalk.model.losses.similarity import Vectors, aggregate, unit_tokens
from fluxtalk.model.process_group import ProcessGroup, SingleProcess

INITIAL_TEMPERATURE = 0.07
MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class LossTerms:
    """The loss of one batch. The mean of ``total`` over all processes is the loss of the global batch."""

    total: Tensor
    contrastive: Tensor
    complementary_l2: Tensor
    complementary_diversity: Tensor
    complementary_objective: Tensor
    """0 without an objective."""

    def items(self) -> dict[str, Tensor]:
        """Return name to detached scalar."""
        return {name: getattr(self, name).detach() for name in self.__dataclass_fields__}


class RegisterTokenLoss(nn.Module):
    """Contrastive loss of the pooled overlapping tokens, plus the losses of the complementary ones.

    ``total = contrastive + complementary_reg_weight * (l2 + diversity) + objective_weight * objective``.

    Contrastive: symmetric, averaged over all pairs of modalities; a sample that lacks a modality takes part in the
    pairs that it has. L2: mean over kept complementary tokens of the squared norm / D. Diversity: mean squared
    cosine of `complementary_diversity`.

    Args:
        complementary_reg_weight: weight of L2 + diversity, at least 0.
        group: the processes that share the batch.
        contrastive: ``infonce``, or ``sigmoid`` (pairs one by one, with a learnable bias).
        aggregation: representation that is compared: ``mean``, ``concat`` or ``maxsim``.
        batch_size: rows of the global batch; the sigmoid's bias starts at -log(batch_size - 1), the log odds of a pair.
        objective: objective of the complementary tokens; None is L2 + diversity alone.
        objective_weight: weight of the objective, at least 0.
        k_values: numbers of tokens at which the loss is always taken, each with a temperature of its own; none if they
            are drawn, or a step has one.
        maxsim_sharpness: see `fluxtalk.model.losses.similarity.similarity`; 0 is the maximum itself.
        nested_dims: sizes, below D, to which tokens are cut: the contrastive loss is the mean over them and D, each
            with temperatures of its own (Kusupati et al. 2022, "Matryoshka Representation Learning").
    """

    def __init__(
        self,
        complementary_reg_weight: float = 0.01,
        group: ProcessGroup | None = None,
        contrastive: str = "infonce",
        aggregation: str = "mean",
        batch_size: int = 64,
        objective: ComplementaryObjective | None = None,
        objective_weight: float = 1.0,
        k_values: Sequence[int] = (),
        maxsim_sharpness: float = 0.0,
        nested_dims: Sequence[int] = (),
    ) -> None:
        super().__init__()
        for name, value in (
            ("complementary_reg_weight", complementary_reg_weight),
            ("complementary_objective_weight", objective_weight),
        ):
            if not value >= 0:
                raise UsageError(f"{name} is at least 0; got {value}.")
        if contrastive not in CONTRASTIVE_LOSSES:
            raise UsageError(f"The contrastive loss is one of {', '.join(CONTRASTIVE_LOSSES)}; got {contrastive!r}.")
        if aggregation not in AGGREGATIONS:
            raise UsageError(f"aggregation is one of {', '.join(AGGREGATIONS)}; got {aggregation!r}.")
        self.complementary_reg_weight = complementary_reg_weight
        self.group: ProcessGroup = group or SingleProcess()
        self.contrastive = contrastive
        self.aggregation = aggregation
        self.objective = objective
        self.objective_weight = objective_weight
        self.k_values = tuple(k_values)
        self.maxsim_sharpness = maxsim_sharpness
        self.nested_dims = tuple(nested_dims)
        initial = torch.tensor(math.log(1 / INITIAL_TEMPERATURE))
        scales = (len(self.nested_dims) + 1) * max(1, len(self.k_values))
        self.log_scale = nn.Parameter(initial.repeat(scales) if self.k_values or self.nested_dims else initial)
        bias = nn.Parameter(torch.tensor(-math.log(max(1, batch_size - 1)))) if contrastive == "sigmoid" else None
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)

    def clamp_temperature(self) -> None:
        """Bring the temperature back into 0.01..1; call it after each optimizer step."""
        with torch.no_grad():
            self.log_scale.clamp_(0.0, MAX_LOG_SCALE)

    def forward(
        self,
        outputs: RegisterOutputs,
        ids: Tensor,
        inputs: ComplementaryInputs | None = None,
        prefix_counts: Sequence[int] = (),
    ) -> LossTerms:
        """Compute the loss of one batch.

        Args:
            outputs: tokens of at least two modalities; row i of each belongs to the same sample.
            ids: int64 (B,); rows of equal id are positives of each other, never negatives.
            inputs: inputs of the complementary objective; required if there is one.
            prefix_counts: if given, the contrastive loss is the mean over these numbers of tokens, the same for all
                samples and modalities; not to be combined with ``k_values``.

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
            scales = self.log_scale.exp().reshape(len(self.nested_dims) + 1, -1)
            sizes = [*(outputs.narrowed(size) for size in self.nested_dims), outputs]
            each = [self._at_each_k(cut, ids, prefix_counts, own) for cut, own in zip(sizes, scales, strict=True)]
            contrastive = torch.stack(each).mean()
            l2, diversity = self._complementary(outputs)
            objective = torch.zeros_like(contrastive)
            if self.objective is not None:
                assert inputs is not None
                objective = self.objective(outputs, inputs, self.group)
        total = contrastive + self.complementary_reg_weight * (l2 + diversity) + self.objective_weight * objective
        return LossTerms(total, contrastive, l2, diversity, objective)

    def _at_each_k(self, outputs: RegisterOutputs, ids: Tensor, prefix_counts: Sequence[int], scales: Tensor) -> Tensor:
        if self.k_values and self.aggregation == "concat":
            vectors = {m: unit_tokens(t, outputs.keep[m], outputs.num_overlapping) for m, t in outputs.tokens.items()}
            return self._symmetric(vectors, outputs, ids, scales).mean()
        if self.k_values:
            each = [
                self._contrastive(outputs, _first(outputs.keep, count), ids, scale)
                for count, scale in zip(self.k_values, scales, strict=True)
            ]
            return torch.stack(each).mean()
        scale = scales[0]
        if not prefix_counts:
            return self._contrastive(outputs, outputs.keep, ids, scale)
        # Beyond the overlapping tokens nothing changes, so such lengths share one computation.
        lengths = Counter(min(count, outputs.num_overlapping) for count in prefix_counts)
        total = ids.new_zeros((), dtype=torch.float32)
        for length, times in sorted(lengths.items()):
            keep = _first(outputs.keep, length)
            total = total + self._contrastive(outputs, keep, ids, scale) * (times / len(prefix_counts))
        return total

    def _contrastive(self, outputs: RegisterOutputs, keep: dict[str, Tensor], ids: Tensor, scale: Tensor) -> Tensor:
        vectors = {
            m: aggregate(self.aggregation, t, keep[m], outputs.num_overlapping) for m, t in outputs.tokens.items()
        }
        return self._symmetric(vectors, outputs, ids, scale)

    def _symmetric(
        self, vectors: Mapping[str, Vectors], outputs: RegisterOutputs, ids: Tensor, scale: Tensor
    ) -> Tensor:
        """Average over the directions, each of which averages over its anchors; one loss for each scale."""
        present = {m: outputs.has(m) for m in vectors}
        everywhere = {
            m: Candidates(self._gathered(v), self.group.all_gather(ids), self.group.all_gather(present[m]))
            for m, v in vectors.items()
        }
        # The sigmoid of a pair is the same from both sides.
        directions = (itertools.permutations if self.contrastive == "infonce" else itertools.combinations)(vectors, 2)
        sums, counts = [], []
        for a, b in directions:
            each, counted = self._anchors(vectors[a], ids, present[a], everywhere[b], scale)
            sums.append((each * counted).sum(dim=-1))
            counts.append(counted.sum().to(sums[-1].dtype))
        totals = self.group.all_reduce_sum(torch.stack(counts))
        means = torch.stack(sums, dim=-1) * self.group.size / totals.clamp_min(1)
        return means.sum(dim=-1) / (totals > 0).sum().clamp_min(1)

    def _anchors(
        self, anchors: Vectors, ids: Tensor, present: Tensor, candidates: Candidates, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of each anchor, and which anchors count: those with a positive, or all that are present."""
        sigmoid = self.contrastive == "sigmoid"
        row_loss, bias = (sigmoid_loss, self.bias) if sigmoid else (info_nce, None)
        if scale.ndim:
            each = contrast_prefixes(row_loss, anchors, ids, candidates, self.k_values, scale, bias)
        else:
            each = contrast(row_loss, anchors, ids, candidates, scale, bias, sharpness=self.maxsim_sharpness)
        return each, present if sigmoid else present & torch.isin(ids, candidates.ids_G[candidates.valid_G])

    def _gathered(self, vectors: Vectors) -> Vectors:
        return Vectors(self.group.all_gather(vectors.unit_BVD), self.group.all_gather(vectors.keep_BV))

    def _complementary(self, outputs: RegisterOutputs) -> tuple[Tensor, Tensor]:
        first = outputs.num_overlapping
        if all(tokens.shape[1] <= first for tokens in outputs.tokens.values()):
            nothing = next(iter(outputs.tokens.values())).new_zeros((), dtype=torch.float32)
            return nothing, nothing
        sums: list[tuple[Tensor, Tensor]] = []
        pairs: list[tuple[Tensor, Tensor]] = []
        for modality, tokens in outputs.tokens.items():
            keep = outputs.keep[modality] & outputs.has(modality)[:, None]
            sums.append(complementary_l2(tokens[:, first:], keep[:, first:]))
            pairs.append(complementary_diversity(tokens, keep, first))
        return self._mean(sums), self._mean(pairs)

    def _mean(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Average over what all processes kept, scaled so that the mean over processes is the global one."""
        value = torch.stack([value for value, _ in parts]).sum()
        count = torch.stack([count for _, count in parts]).sum().to(value.dtype)
        return value * self.group.size / self.group.all_reduce_sum(count).clamp_min(1)


def _first(keep: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Keep no more than the first ``count`` tokens."""
    return {m: k & (torch.arange(k.shape[1], device=k.device) < count) for m, k in keep.items()}
