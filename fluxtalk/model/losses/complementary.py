"""Losses of the complementary tokens: regularizers, and objectives that give them content.

Shapes: B this process's samples, G samples of all processes, K tokens, C complementary ones, D head dimension.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxtalk.config import COMPLEMENTARY_OBJECTIVES
from fluxtalk.errors import UsageError
from fluxtalk.model.head.pooling import l2_normalize
from fluxtalk.model.head.token_head import RegisterOutputs
from fluxtalk.model.losses.contrastive import Candidates, contrast, info_nce
from fluxtalk.model.losses.similarity import single
from fluxtalk.model.process_group import ProcessGroup

CONTRAST_SCALE = 10.0
"""Inverse temperature of the contrast within a modality; fixed, because it has no other side to balance."""


def complementary_l2(tokens_BCD: Tensor, keep_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the squared norm / D over kept complementary tokens, and count them."""
    each = at_least_float32(tokens_BCD).square().mean(dim=-1)
    return (each * keep_BC).sum(), keep_BC.sum()


def complementary_diversity(tokens_BKD: Tensor, keep_BK: Tensor, num_overlapping: int) -> tuple[Tensor, Tensor]:
    """Sum the squared cosines between each kept complementary token and every other kept token of its sample.

    Overlapping tokens take no gradient: the contrastive loss alone moves them, and the complementary ones keep away
    from them. Also returns the number of such pairs.
    """
    unit = l2_normalize(tokens_BKD)
    others = torch.cat([unit[:, :num_overlapping].detach(), unit[:, num_overlapping:]], dim=1)
    cosine = unit[:, num_overlapping:] @ others.transpose(1, 2)
    itself = torch.eye(tokens_BKD.shape[1], dtype=torch.bool, device=unit.device)[num_overlapping:]
    counts = keep_BK[:, num_overlapping:, None] & keep_BK[:, None, :] & ~itself
    return (cosine.square() * counts).sum(), counts.sum()


def cross_correlation_penalty(x_GD: Tensor, y_GD: Tensor, kept_G: Tensor) -> Tensor:
    """Measure how much of x a linear map of y predicts: a scalar, 0 at chance.

    The mean over x's dimensions of the summed squared Pearson correlations with all of y's, over the rows kept; less
    the mean of independent vectors, D / rows: without that, noise would move few rows of many dimensions. The
    off-diagonal idea of Zbontar et al. 2021, "Barlow Twins", between two different things.
    """
    weight = kept_G.to(x_GD.dtype)
    count = weight.sum().clamp_min(1)
    x, y = (_standardized(z, weight, count) for z in (x_GD, y_GD))
    explained = ((x * weight[:, None]).T @ y / count).square().sum(dim=1).mean()
    return F.relu(explained - y_GD.shape[1] / count)


def variance_hinge(unit_GD: Tensor, kept_G: Tensor) -> Tensor:
    """Measure how far each dimension's standard deviation is below that of evenly spread unit vectors: in 0..1.

    Bardes, Ponce and LeCun 2022, "VICReg", with the hinge at D^-1/2 for vectors of length 1.
    """
    weight = kept_G.to(unit_GD.dtype)
    count = weight.sum().clamp_min(1)
    mean = (unit_GD * weight[:, None]).sum(dim=0) / count
    variance = ((unit_GD - mean).square() * weight[:, None]).sum(dim=0) / count
    return F.relu(1 - (unit_GD.shape[1] * variance + 1e-6).sqrt()).mean()


@dataclass(frozen=True)
class ComplementaryInputs:
    """Inputs of an objective besides the tokens; each names every modality."""

    items: Mapping[str, Tensor]
    """int64 (B,): rows with the same number hold the same raw item, and are never each other's negatives."""
    second_view: Mapping[str, Tensor]
    """(B, K, D): the tokens of another token-dropout view of the same features; empty unless the objective has
    ``needs_second_view``."""
    targets: Mapping[str, Tensor]
    """(B, E): the mean of the sample's normalized features."""
    ids: Tensor
    """int64 (B,): rows with the same number hold the same thing."""


class ComplementaryObjective(Protocol):
    """A loss that only complementary tokens can lower; overlapping ones take no gradient from it."""

    needs_second_view: bool
    """True if it reads `ComplementaryInputs.second_view`."""

    def __call__(self, outputs: RegisterOutputs, inputs: ComplementaryInputs, group: ProcessGroup) -> Tensor:
        """Compute a scalar; its mean over processes is the global batch's."""


class Contrast(nn.Module):
    """Tell items of one modality apart, given what the other modalities know.

    InfoNCE between two token-dropout views of the same features, on the complementary token beside the pooled
    overlapping tokens of the *other* modalities (without gradient). What those tell apart already needs nothing from
    the complementary token: it is left with what only this modality knows. The modality's own overlapping tokens
    would not do: the contrastive loss does not take private information out of them, and a complementary token
    beside them has nothing left to say. A cross-correlation penalty keeps it from repeating what is shared, and a
    variance hinge from collapsing.

    Args:
        correlation_weight: weight of the cross-correlation penalty.
    """

    needs_second_view = True

    def __init__(self, correlation_weight: float = 1.0) -> None:
        super().__init__()
        self.correlation_weight = correlation_weight

    def forward(self, outputs: RegisterOutputs, inputs: ComplementaryInputs, group: ProcessGroup) -> Tensor:
        """See `ComplementaryObjective`."""
        terms = []
        for modality, tokens in outputs.tokens.items():
            known, is_known = known_elsewhere(outputs, modality)
            items = inputs.items[modality]
            all_items = group.all_gather(items)
            for index in range(outputs.num_overlapping, tokens.shape[1]):
                kept = outputs.keep[modality][:, index] & outputs.has(modality) & is_known
                views = [l2_normalize(view[:, index]) for view in (tokens, inputs.second_view[modality])]
                both = [torch.cat([own, known], dim=1) for own in views]
                contrast_ = _between_views(both, items, all_items, kept, group)
                terms.append(contrast_ + _apart(views[0], known, kept, self.correlation_weight, group))
        return _mean(terms, outputs)


class Reconstruction(nn.Module):
    """Predict the mean of the sample's normalized features from its complementary tokens and what others know.

    What the other modalities' pooled overlapping tokens (without gradient) tell about the features already need not be
    in the complementary tokens; the rest must be. Penalties as in `Contrast`.

    Args:
        dims: modality to feature dimension.
        dim: head dimension.
        num_complementary: number of complementary tokens.
        correlation_weight: weight of the cross-correlation penalty.
    """

    needs_second_view = False

    def __init__(
        self, dims: Mapping[str, int], dim: int, num_complementary: int, correlation_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.correlation_weight = correlation_weight
        self.decoders = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(dim * (num_complementary + 1), 2 * dim), nn.GELU(), nn.Linear(2 * dim, e))
                for name, e in dims.items()
            }
        )

    def forward(self, outputs: RegisterOutputs, inputs: ComplementaryInputs, group: ProcessGroup) -> Tensor:
        """See `ComplementaryObjective`; only rows that kept a complementary token count."""
        terms = []
        for modality, tokens in outputs.tokens.items():
            first = outputs.num_overlapping
            known, is_known = known_elsewhere(outputs, modality)
            keep = outputs.keep[modality][:, first:] & (outputs.has(modality) & is_known)[:, None]
            own = l2_normalize(tokens[:, first:]) * keep[..., None]
            predicted = self.decoders[modality](torch.cat([own.flatten(1), known], dim=1))
            error = (predicted - inputs.targets[modality]).square().mean(dim=1)
            terms.append(_over_kept(error, keep[:, 0], group))
            for index in range(keep.shape[1]):
                apart = _apart(own[:, index], known, keep[:, index], self.correlation_weight, group)
                terms[-1] = terms[-1] + apart / keep.shape[1]
        return _mean(terms, outputs)


class Difference(nn.Module):
    """Predict how an item differs from the other items of its id, by a linear map of its complementary tokens.

    With r the mean of an item's normalized features less the average of that over the distinct items of its id and
    modality in the global batch, ``|A c - r|^2 / Var(r)``: 1 if the tokens c say nothing of it, 0 if they say all.
    What all items of an id share is not in r, and what no other modality can tell is all that is left. Only rows whose
    id has two or more items in the batch count; serving needs one item alone.

    Args:
        dims: modality to feature dimension, for the modalities in which ids have several items.
        dim: head dimension.
        num_complementary: number of complementary tokens.
    """

    needs_second_view = False

    def __init__(self, dims: Mapping[str, int], dim: int, num_complementary: int) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(dim * num_complementary, e) for name, e in dims.items()})

    def forward(self, outputs: RegisterOutputs, inputs: ComplementaryInputs, group: ProcessGroup) -> Tensor:
        """See `ComplementaryObjective`; only rows that kept a complementary token count."""
        terms = []
        for modality, linear in self.maps.items():
            first = outputs.num_overlapping
            keep, present = outputs.keep[modality][:, first:], outputs.has(modality)
            own = (l2_normalize(outputs.tokens[modality][:, first:]) * keep[..., None]).flatten(1)
            difference, has_others = differences(
                inputs.targets[modality].to(own.dtype), inputs.ids, inputs.items[modality], present, group
            )
            counted = has_others & keep[:, 0]
            error = _over_kept((linear(own) - difference).square().sum(dim=1), counted, group)
            variance = group.all_reduce_sum(_over_kept(difference.square().sum(dim=1), counted, group)) / group.size
            # Items with the same features, or none, ask for nothing.
            terms.append(error / variance.clamp_min(1e-6))
        return _mean(terms, outputs)


def differences(
    values_BE: Tensor, ids_B: Tensor, items_B: Tensor, present_B: Tensor, group: ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Subtract from each row the average over the distinct items of its id in the global batch.

    Args:
        values_BE: what is averaged, the same in all rows of one item; takes no gradient.
        ids_B: int64; rows of one id are averaged.
        items_B: int64; rows of the same id and item count once.
        present_B: bool; other rows hold nothing.

    Returns:
        (B, E), 0 in rows without another item; and bool (B,): whether the row's id has two or more items in the batch.
    """
    all_ids, all_items, all_present = (group.all_gather(x) for x in (ids_B, items_B, present_B))
    all_values = group.all_gather(values_BE.detach())
    both = torch.stack([all_ids, all_items], dim=1)
    _, item_G, rows_of_item = torch.unique(both[all_present], dim=0, return_inverse=True, return_counts=True)
    # Several rows of one item share its weight of 1.
    share_G = all_present.to(values_BE.dtype)
    share_G[all_present] = 1 / rows_of_item[item_G].to(values_BE.dtype)
    share_BG = (ids_B[:, None] == all_ids) * share_G
    count_B = share_BG.sum(dim=1)
    has_others = present_B & (count_B > 1.5)
    mean_BE = share_BG @ all_values / count_B.clamp_min(1)[:, None]
    return (values_BE.detach() - mean_BE) * has_others[:, None], has_others


def build_objective(
    name: str,
    dims: Mapping[str, int],
    dim: int,
    num_complementary: int,
    correlation_weight: float = 1.0,
    several_items: Collection[str] | None = None,
) -> Contrast | Reconstruction | Difference | None:
    """Build the objective of that name; None for ``none``, and for ``difference`` if no id has two items of a modality.

    Args:
        several_items: modalities in which ids have several items in a batch, for ``difference``; None is all.

    Raises:
        UsageError: the name is unknown, or the head has no complementary token.
    """
    if name not in COMPLEMENTARY_OBJECTIVES:
        raise UsageError(f"--complementary-objective is one of {', '.join(COMPLEMENTARY_OBJECTIVES)}; got {name!r}.")
    if name == "none":
        return None
    if num_complementary < 1:
        raise UsageError(
            f"--complementary-objective {name} needs a complementary token; "
            "set --num-overlapping-tokens below --num-register-tokens."
        )
    if name == "contrast":
        return Contrast(correlation_weight)
    if name == "difference":
        differing = {m: e for m, e in dims.items() if several_items is None or m in several_items}
        return Difference(differing, dim, num_complementary) if differing else None
    return Reconstruction(dims, dim, num_complementary, correlation_weight)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def known_elsewhere(outputs: RegisterOutputs, modality: str) -> tuple[Tensor, Tensor]:
    """Average the other modalities' pooled overlapping tokens of each sample, without gradient.

    Returns:
        (B, D) of length 1, and bool (B,): whether the sample has another modality at all.
    """
    others = [m for m in outputs.tokens if m != modality]
    present = torch.stack([outputs.has(m) for m in others])
    pooled = torch.stack([outputs.pooled(m).detach() for m in others])
    return l2_normalize((pooled * present[..., None]).sum(dim=0)), present.any(dim=0)


def _between_views(both: list[Tensor], items: Tensor, all_items: Tensor, kept: Tensor, group: ProcessGroup) -> Tensor:
    """Symmetric InfoNCE between the views; cosines of the two halves are added."""
    scale = torch.tensor(CONTRAST_SCALE, device=kept.device, dtype=both[0].dtype)
    all_kept = group.all_gather(kept)
    rows = []
    for anchors, others in ((both[0], both[1]), (both[1], both[0])):
        candidates = Candidates(single(group.all_gather(others)), all_items, all_kept)
        rows.append(contrast(info_nce, single(anchors), items, candidates, scale))
    return _over_kept((rows[0] + rows[1]) / 2, kept, group)


def _apart(own: Tensor, known: Tensor, kept: Tensor, correlation_weight: float, group: ProcessGroup) -> Tensor:
    """Add the penalties between a complementary token and the other modalities', over the global batch."""
    everywhere, all_kept = group.all_gather(own), group.all_gather(kept)
    correlation = cross_correlation_penalty(everywhere, group.all_gather(known), all_kept)
    return correlation_weight * correlation + variance_hinge(everywhere, all_kept)


def _over_kept(values_B: Tensor, kept_B: Tensor, group: ProcessGroup) -> Tensor:
    """Average over the rows that all processes kept, scaled so that the mean over processes is the global one."""
    total = (values_B * kept_B).sum()
    return total * group.size / group.all_reduce_sum(kept_B.sum().to(total.dtype)).clamp_min(1)


def _standardized(x_GD: Tensor, weight_G: Tensor, count: Tensor) -> Tensor:
    centered = x_GD - (x_GD * weight_G[:, None]).sum(dim=0) / count
    variance = (centered.square() * weight_G[:, None]).sum(dim=0) / count
    return centered * (variance + 1e-6).rsqrt()


def _mean(terms: list[Tensor], outputs: RegisterOutputs) -> Tensor:
    if not terms:
        return next(iter(outputs.tokens.values())).new_zeros(())
    return torch.stack(terms).mean()
