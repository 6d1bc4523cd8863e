"""Objectives of the complementary tokens: against slow references, and what they may not touch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fluxtalk.errors import UsageError
from fluxtalk.model.head.token_head import RegisterOutputs
from fluxtalk.model.losses.complementary import (
    CONTRAST_SCALE,
    ComplementaryInputs,
    Contrast,
    Difference,
    Reconstruction,
    build_objective,
    cross_correlation_penalty,
    known_elsewhere,
    variance_hinge,
)
from fluxtalk.model.losses.register_loss import RegisterTokenLoss
from fluxtalk.model.process_group import SingleProcess

ROWS, FIRST, TOKENS, DIM = 9, 2, 3, 6
WEIGHT = 0.7


def _case(seed: int = 0) -> tuple[RegisterOutputs, ComplementaryInputs]:
    """Two modalities; some rows dropped the complementary token, one has no image, two hold the same image.

    Id 0 has two images in three rows, id 1 one image, ids 2 and 3 two each.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = {"image": torch.tensor([3, 3, 1, 3, 3, 2, 3, 3, 3]), "text": torch.tensor([3, 2, 3, 3, 3, 3, 1, 3, 3])}
    keep = {m: torch.arange(TOKENS) < n[:, None] for m, n in lengths.items()}
    tokens = {m: (noise(ROWS, TOKENS, DIM) * k[..., None]).requires_grad_() for m, k in keep.items()}
    second = {m: (noise(ROWS, TOKENS, DIM) * k[..., None]).requires_grad_() for m, k in keep.items()}
    present = {"image": torch.arange(ROWS) != 4, "text": torch.ones(ROWS, dtype=torch.bool)}
    items = {"image": torch.tensor([0, 1, 2, 0, -1, 5, 6, 7, 8]), "text": torch.arange(ROWS)}
    targets = {m: noise(ROWS, 5) for m in tokens}
    targets["image"][3] = targets["image"][0]
    ids = torch.tensor([0, 0, 1, 0, 1, 2, 3, 3, 2])
    return RegisterOutputs(tokens, keep, FIRST, present), ComplementaryInputs(items, second, targets, ids)


def _known(outputs: RegisterOutputs, modality: str, row: int) -> Tensor:
    """Pool the other modality's kept overlapping tokens of a sample."""
    other = "text" if modality == "image" else "image"
    keep = outputs.keep[other][row, :FIRST, None]
    return F.normalize((outputs.tokens[other][row, :FIRST].detach() * keep).sum(dim=0), dim=0)


def _counted(outputs: RegisterOutputs, modality: str) -> list[int]:
    """Rows that kept their complementary token and have both modalities."""
    both = outputs.present["image"] & outputs.present["text"]
    return [i for i in range(ROWS) if outputs.keep[modality][i, FIRST] and both[i]]


def _slow_contrast(outputs: RegisterOutputs, inputs: ComplementaryInputs, modality: str) -> Tensor:
    """InfoNCE between two views, one row at a time: every view of the same item is a positive, none a negative."""
    kept = _counted(outputs, modality)
    views = []
    for tokens in (outputs.tokens[modality], inputs.second_view[modality]):
        views.append([torch.cat([F.normalize(tokens[i, FIRST], dim=0), _known(outputs, modality, i)]) for i in kept])
    items = [int(inputs.items[modality][i]) for i in kept]
    losses = []
    for anchors, others in (views, views[::-1]):
        for anchor, item in zip(anchors, items, strict=True):
            scores = torch.stack([CONTRAST_SCALE * anchor @ other for other in others])
            negatives = torch.tensor([other != item for other in items])
            terms = [
                torch.log(torch.exp(scores[p]) + torch.exp(scores[negatives]).sum()) - scores[p]
                for p in range(len(items))
                if items[p] == item
            ]
            losses.append(torch.stack(terms).mean())
    return torch.stack(losses).mean()


def _slow_penalties(outputs: RegisterOutputs, modality: str) -> Tensor:
    kept = _counted(outputs, modality)
    own = F.normalize(outputs.tokens[modality][kept, FIRST], dim=1)
    shared = torch.stack([_known(outputs, modality, i) for i in kept])
    correlation = torch.stack(
        [
            torch.stack([torch.corrcoef(torch.stack([own[:, i], shared[:, j]]))[0, 1] for j in range(DIM)])
            for i in range(DIM)
        ]
    )
    deviation = (DIM * own.var(dim=0, unbiased=False)).sqrt()
    # Less what independent vectors of so few rows would give.
    explained = F.relu(correlation.square().sum(dim=1).mean() - DIM / len(kept))
    return WEIGHT * explained + F.relu(1 - deviation).mean()


def test_contrast_equals_plain_loops() -> None:
    outputs, inputs = _case()
    expected = torch.stack([_slow_contrast(outputs, inputs, m) + _slow_penalties(outputs, m) for m in outputs.tokens])
    actual = Contrast(WEIGHT)(outputs, inputs, SingleProcess())
    torch.testing.assert_close(actual, expected.mean(), rtol=1e-4, atol=1e-5)
    slow = torch.autograd.grad(expected.mean(), [*outputs.tokens.values(), *inputs.second_view.values()])
    fast = torch.autograd.grad(actual, [*outputs.tokens.values(), *inputs.second_view.values()])
    for a, b in zip(fast, slow, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_reconstruction_equals_plain_loops() -> None:
    outputs, inputs = _case()
    objective = Reconstruction({"image": 5, "text": 5}, DIM, 1, WEIGHT).double()
    expected = []
    for modality, tokens in outputs.tokens.items():
        errors = []
        for i in _counted(outputs, modality):
            both = torch.cat([F.normalize(tokens[i, FIRST], dim=0), _known(outputs, modality, i)])
            errors.append((objective.decoders[modality](both) - inputs.targets[modality][i]).square().mean())
        expected.append(torch.stack(errors).mean() + _slow_penalties(outputs, modality))
    actual = objective(outputs, inputs, SingleProcess())
    # The penalties guard against constant dimensions by 1e-6 beside variances of about 1/6.
    torch.testing.assert_close(actual, torch.stack(expected).mean(), rtol=1e-4, atol=0)


def _slow_differences(outputs: RegisterOutputs, inputs: ComplementaryInputs, modality: str) -> dict[int, Tensor]:
    """Row to its difference from the average over its id's distinct items; rows without another item are left out."""
    found = {}
    for row in range(ROWS):
        items = {
            int(inputs.items[modality][other]): inputs.targets[modality][other]
            for other in range(ROWS)
            if inputs.ids[other] == inputs.ids[row] and outputs.has(modality)[other]
        }
        if outputs.has(modality)[row] and len(items) > 1:
            found[row] = inputs.targets[modality][row] - torch.stack(list(items.values())).mean(dim=0)
    return found


def test_difference_equals_plain_loops() -> None:
    outputs, inputs = _case()
    objective = Difference({"image": 5, "text": 5}, DIM, 1).double()
    expected = []
    for modality, tokens in outputs.tokens.items():
        differences = _slow_differences(outputs, inputs, modality)
        kept = [row for row in differences if outputs.keep[modality][row, FIRST]]
        errors = [
            (objective.maps[modality](F.normalize(tokens[row, FIRST], dim=0)) - differences[row]).square().sum()
            for row in kept
        ]
        variance = torch.stack([differences[row].square().sum() for row in kept]).mean()
        expected.append(torch.stack(errors).mean() / variance)
    assert sorted(_slow_differences(outputs, inputs, "image")) == [0, 1, 3, 5, 6, 7, 8]
    torch.testing.assert_close(objective(outputs, inputs, SingleProcess()), torch.stack(expected).mean())


def test_difference_is_the_share_that_the_tokens_leave_out() -> None:
    """A map that says nothing costs 1; tokens that hold the differences cost 0; other tokens and ids cost nothing."""
    outputs, inputs = _case()
    objective = Difference({"image": 5}, DIM, 1).double()
    for parameter in objective.parameters():
        torch.nn.init.zeros_(parameter)
    assert objective(outputs, inputs, SingleProcess()).item() == pytest.approx(1)
    differences = _slow_differences(outputs, inputs, "image")
    torch.manual_seed(0)
    unit = F.normalize(torch.randn(ROWS, 2, dtype=torch.float64), dim=1)
    # Differences that two numbers hold, with tokens that are those numbers.
    plane = torch.randn(2, 5, dtype=torch.float64)
    pairs = torch.stack([unit[5], -unit[5], unit[6], -unit[6]]) @ plane
    rows = torch.tensor([5, 8, 6, 7])
    targets = torch.randn(ROWS, 5, dtype=torch.float64)
    targets[rows] = pairs + torch.tensor([[10.0], [10.0], [-3.0], [-3.0]])
    tokens = torch.zeros(ROWS, TOKENS, DIM, dtype=torch.float64)
    tokens[rows, FIRST, :2] = torch.stack([unit[5], -unit[5], unit[6], -unit[6]])
    with torch.no_grad():
        objective.get_parameter("maps.image.weight")[:, :2] = plane.T
    alone = torch.arange(ROWS)
    ids = torch.where(torch.isin(alone, rows), inputs.ids, alone + 10)
    whole = dataclasses.replace(
        outputs, tokens={"image": tokens}, keep={"image": torch.ones(ROWS, TOKENS, dtype=torch.bool)}, present={}
    )
    told = dataclasses.replace(inputs, targets={"image": targets}, ids=ids, items={"image": alone})
    assert objective(whole, told, SingleProcess()).item() == pytest.approx(0, abs=1e-12)
    assert len(differences) > len(rows)
    # Without two items of any id there is nothing to ask for.
    single = objective(whole, dataclasses.replace(told, ids=alone), SingleProcess())
    assert single.item() == 0
    single.backward()


def test_difference_has_no_map_for_a_modality_without_several_items() -> None:
    some = build_objective("difference", {"image": 5, "text": 7}, DIM, 2, several_items=("image",))
    assert isinstance(some, Difference)
    assert [(name, p.shape) for name, p in some.named_parameters()] == [
        ("maps.image.weight", (5, 2 * DIM)), ("maps.image.bias", (5,)),
    ]  # fmt: skip
    assert build_objective("difference", {"image": 5, "text": 7}, DIM, 1, several_items=()) is None


@pytest.mark.parametrize("name", ["contrast", "reconstruction"])
def test_only_kept_complementary_tokens_take_gradient(name: str) -> None:
    """Overlapping tokens are where the contrastive loss between modalities wants them."""
    outputs, inputs = _case()
    objective = build_objective(name, {"image": 5, "text": 5}, DIM, 1)
    assert objective is not None
    objective.double()(outputs, inputs, SingleProcess()).backward()
    for modality, tokens in outputs.tokens.items():
        kept = torch.zeros(ROWS, dtype=torch.bool)
        kept[_counted(outputs, modality)] = True
        assert tokens.grad is not None
        assert (tokens.grad[:, :FIRST] == 0).all()
        assert (tokens.grad[~kept] == 0).all()
        assert (tokens.grad[kept, FIRST].abs().sum(dim=-1) > 0).all()


def test_contrast_cannot_be_lowered_by_repeating_what_others_know() -> None:
    """A complementary token that says what the other modality says costs more than one that says something else."""
    outputs, inputs = _case()
    generator = torch.Generator().manual_seed(7)
    own = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64)
    losses = {}
    for kind in ("repeats", "new"):
        tokens = {}
        for m, other in (("image", "text"), ("text", "image")):
            token = outputs.tokens[other][:, :FIRST].sum(dim=1) if kind == "repeats" else own
            tokens[m] = torch.cat([outputs.tokens[m][:, :FIRST], token[:, None]], dim=1).detach()
        full = dataclasses.replace(
            outputs, tokens=tokens, keep={m: torch.ones(ROWS, TOKENS, dtype=torch.bool) for m in tokens}, present={}
        )
        losses[kind] = Contrast()(full, dataclasses.replace(inputs, second_view=tokens), SingleProcess()).item()
    assert losses["new"] < losses["repeats"] - 0.1


def test_a_sample_without_any_other_modality_does_not_count() -> None:
    outputs, _ = _case()
    known, is_known = known_elsewhere(outputs, "text")
    assert is_known.tolist() == [i != 4 for i in range(ROWS)]
    torch.testing.assert_close(known[0], _known(outputs, "text", 0))
    assert not known.requires_grad


def test_cross_correlation_is_the_squared_pearson_correlation_above_chance() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((400, 3))
    y = x[:, :2] + generator.standard_normal((400, 2))
    kept = np.arange(400) % 4 != 0
    squared = np.square(np.corrcoef(x[kept], y[kept], rowvar=False)[:3, 3:]).sum(axis=1).mean()
    actual = cross_correlation_penalty(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(kept))
    assert actual.item() == pytest.approx(squared - 2 / 300, rel=1e-4)
    assert actual.item() == pytest.approx(1 / 3, abs=0.05)
    nothing = cross_correlation_penalty(torch.from_numpy(x), torch.from_numpy(y), torch.zeros(400, dtype=torch.bool))
    assert nothing.item() == 0


def test_cross_correlation_of_independent_vectors_is_hardly_anything() -> None:
    """Many dimensions and few rows, for which the plain estimate would be 1/2."""
    x, y = (torch.randn(128, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert cross_correlation_penalty(x, y, torch.ones(128, dtype=torch.bool)).item() < 0.02


def test_the_variance_hinge_is_1_for_a_constant_and_0_for_spread() -> None:
    everyone = torch.ones(4096, dtype=torch.bool)
    spread = F.normalize(torch.randn(4096, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    constant = spread[:1].expand(4096, 8)
    assert variance_hinge(constant, everyone).item() == pytest.approx(1, abs=2e-3)
    assert variance_hinge(spread, everyone).item() < 0.02
    half = torch.where(torch.arange(4096)[:, None] < 2048, spread, constant)
    assert variance_hinge(half, torch.arange(4096) < 2048).item() < 0.03


def test_the_objective_is_added_with_its_weight_and_none_is_nothing() -> None:
    outputs, inputs = _case()
    plain = RegisterTokenLoss(0.5).double()(outputs, torch.arange(ROWS))
    assert plain.complementary_objective.item() == 0
    loss = RegisterTokenLoss(0.5, objective=Contrast(), objective_weight=3.0).double()
    terms = loss(outputs, torch.arange(ROWS), inputs)
    torch.testing.assert_close(terms.contrastive, plain.contrastive)
    torch.testing.assert_close(terms.total, plain.total + 3 * terms.complementary_objective)
    assert terms.complementary_objective.item() > 0.1
    assert build_objective("none", {"image": 5}, DIM, 0) is None


def test_impossible_objectives_are_refused() -> None:
    with pytest.raises(UsageError, match="needs a complementary token"):
        build_objective("contrast", {"image": 5}, DIM, 0)
    with pytest.raises(UsageError, match="one of none, reconstruction, contrast, difference; got 'other'"):
        build_objective("other", {"image": 5}, DIM, 1)
    with pytest.raises(UsageError, match="complementary_objective_weight is at least 0"):
        RegisterTokenLoss(objective=Contrast(), objective_weight=-1.0)
