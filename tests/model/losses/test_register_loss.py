"""The losses against plain loops in float64, their gradients, and what must never happen."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fluxtalk.errors import UsageError
from fluxtalk.model.head.pooling import pool_kept
from fluxtalk.model.head.token_head import RegisterOutputs
from fluxtalk.model.losses.complementary import complementary_diversity, complementary_l2
from fluxtalk.model.losses.contrastive import Candidates, contrast, info_nce
from fluxtalk.model.losses.register_loss import MAX_LOG_SCALE, RegisterTokenLoss
from fluxtalk.model.losses.similarity import single

SCALE = 5.0


def _unit(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    unit: Tensor = x / x.norm(dim=1, keepdim=True)
    return unit


def info_nce_rows(anchors: Tensor, candidates: Tensor, ids: Tensor, candidate_ids: Tensor, scale: Tensor) -> Tensor:
    everyone = torch.ones(len(candidates), dtype=torch.bool)
    return contrast(info_nce, single(anchors), ids, Candidates(single(candidates), candidate_ids, everyone), scale)


def _slow_info_nce(anchors: Tensor, candidates: Tensor, anchor_ids: list[int], candidate_ids: list[int]) -> Tensor:
    """The formula of the docstring, one number at a time."""
    losses = []
    for anchor, own in zip(anchors, anchor_ids, strict=True):
        terms = []
        for p, positive_id in enumerate(candidate_ids):
            if positive_id != own:
                continue
            positive = (SCALE * (anchor * candidates[p]).sum()).exp()
            others = sum(
                (
                    (SCALE * (anchor * candidates[j]).sum()).exp()
                    for j in range(len(candidates))
                    if candidate_ids[j] != own
                ),
                torch.zeros((), dtype=torch.float64),
            )
            terms.append(-(positive / (positive + others)).log())
        losses.append(sum(terms, torch.zeros((), dtype=torch.float64)) / len(terms))
    return torch.stack(losses)


IDS = [
    pytest.param([0, 1, 2, 3], [0, 1, 2, 3], id="unique"),
    pytest.param([0, 0, 2, 3], [0, 0, 2, 3], id="two-captions"),
    pytest.param([7, 2, 7, 7], [7, 2, 7, 7, 2, 9], id="three-of-one-and-other-processes"),
]


@pytest.mark.parametrize(("anchor_ids", "candidate_ids"), IDS)
def test_info_nce_equals_the_plain_loop(anchor_ids: list[int], candidate_ids: list[int]) -> None:
    """Values, and gradients with respect to anchors, candidates and scale."""
    gradients, values = [], []
    for slow in (True, False):
        anchors = _unit(len(anchor_ids), 6, 1).requires_grad_()
        candidates = _unit(len(candidate_ids), 6, 2).requires_grad_()
        if slow:
            rows = _slow_info_nce(anchors, candidates, anchor_ids, candidate_ids)
        else:
            rows = info_nce_rows(
                anchors, candidates, torch.tensor(anchor_ids), torch.tensor(candidate_ids), torch.tensor(SCALE)
            )
        rows.sum().backward()  # type: ignore[no-untyped-call]
        values.append(rows.detach().double())
        gradients.append((anchors.grad, candidates.grad))
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-6)
    for fast_gradient, slow_gradient in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-4, atol=1e-5)


def test_info_nce_is_cross_entropy_where_ids_are_unique() -> None:
    """PyTorch's own as a second implementation."""
    anchors, candidates = _unit(9, 12, 1, torch.float32), _unit(9, 12, 2, torch.float32)
    ids = torch.arange(9)
    expected = F.cross_entropy(SCALE * anchors @ candidates.T, ids, reduction="none")
    actual = info_nce_rows(anchors, candidates, ids, ids, torch.tensor(SCALE))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_duplicates_are_never_negatives() -> None:
    """Another positive that lies right on the anchor must not push it away: its gradient there is nothing."""
    anchors = _unit(2, 6, 1, torch.float32)
    candidates = torch.stack([_unit(1, 6, 2, torch.float32)[0], anchors[0], _unit(1, 6, 3, torch.float32)[0]])
    with_twin = info_nce_rows(anchors, candidates, torch.tensor([0, 1]), torch.tensor([0, 0, 1]), torch.tensor(SCALE))
    first = info_nce_rows(anchors[:1], candidates[[0, 2]], torch.tensor([0]), torch.tensor([0, 1]), torch.tensor(SCALE))
    twin = info_nce_rows(anchors[:1], candidates[[1, 2]], torch.tensor([0]), torch.tensor([0, 1]), torch.tensor(SCALE))
    torch.testing.assert_close(with_twin[:1], (first + twin) / 2)


def test_a_row_without_negatives_costs_nothing_and_has_no_nan() -> None:
    """All candidates are positives: nothing to tell apart."""
    anchors = _unit(3, 6, 1, torch.float32).requires_grad_()
    scale = torch.tensor(SCALE, requires_grad=True)
    ids = torch.zeros(3, dtype=torch.long)
    rows = info_nce_rows(anchors, _unit(3, 6, 2, torch.float32), ids, ids, scale)
    rows.sum().backward()  # type: ignore[no-untyped-call]
    assert rows.tolist() == [0, 0, 0]
    assert anchors.grad is not None
    assert scale.grad is not None
    assert (anchors.grad == 0).all()
    assert scale.grad == 0


def test_info_nce_survives_the_largest_scale() -> None:
    """exp(100) does not fit float32; the loss does."""
    anchors = _unit(4, 6, 1, torch.float32)
    scale = torch.tensor(100.0)
    rows = info_nce_rows(anchors, -anchors, torch.arange(4), torch.arange(4), scale)
    cosine = (anchors @ -anchors.T).double()
    expected = (100 * cosine).logsumexp(dim=1) - 100 * cosine.diagonal()
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-4)
    assert rows.max() > 50


def _outputs(modalities: tuple[str, ...], overlapping: int = 3, tokens: int = 5, batch: int = 6) -> RegisterOutputs:
    """Random tokens with random prefixes kept, among them a full one and one without complementary tokens."""
    generator = torch.Generator().manual_seed(len(modalities))
    values, keep = {}, {}
    for modality in modalities:
        lengths = torch.randint(1, tokens + 1, (batch,), generator=generator)
        lengths[0], lengths[1] = tokens, overlapping
        keep[modality] = torch.arange(tokens) < lengths[:, None]
        raw = torch.randn(batch, tokens, 8, generator=generator, dtype=torch.float64)
        values[modality] = (raw * keep[modality][..., None]).requires_grad_()
    return RegisterOutputs(values, keep, overlapping)


@pytest.mark.parametrize("modalities", [("image", "text"), ("audio", "image", "text")])
def test_contrastive_is_symmetric_over_all_pairs(modalities: tuple[str, ...]) -> None:
    """The mean over every ordered pair of modalities of the mean over rows."""
    outputs = _outputs(modalities)
    ids = [3, 1, 4, 1, 5, 9]
    loss = RegisterTokenLoss(0.0)
    loss.log_scale.data.fill_(math.log(SCALE))
    pooled = {}
    for m in modalities:
        rows = []
        for tokens, keep in zip(outputs.tokens[m], outputs.keep[m], strict=True):
            kept = [tokens[i] for i in range(3) if keep[i]]
            mean = sum(kept, torch.zeros(8, dtype=torch.float64)) / len(kept)
            rows.append(mean / mean.norm())
        pooled[m] = torch.stack(rows)
    parts = [_slow_info_nce(pooled[a], pooled[b], ids, ids).mean() for a, b in itertools.permutations(modalities, 2)]
    assert len(parts) == len(modalities) * (len(modalities) - 1)
    expected = torch.stack(parts).mean()
    actual = loss(outputs, torch.tensor(ids))
    torch.testing.assert_close(actual.contrastive.double(), expected, rtol=1e-5, atol=1e-6)
    swapped = RegisterOutputs(
        {m: outputs.tokens[m] for m in reversed(modalities)}, {m: outputs.keep[m] for m in reversed(modalities)}, 3
    )
    torch.testing.assert_close(loss(swapped, torch.tensor(ids)).contrastive, actual.contrastive)


def _slow_l2(outputs: RegisterOutputs) -> float:
    """The mean, over kept complementary tokens of every modality, of squared norm / D."""
    values = [
        sum(number**2 for number in tokens[i].tolist()) / len(tokens[i])
        for m in outputs.tokens
        for tokens, keep in zip(outputs.tokens[m], outputs.keep[m], strict=True)
        for i in range(outputs.num_overlapping, len(tokens))
        if keep[i]
    ]
    return float(sum(values) / len(values))


def _slow_diversity(outputs: RegisterOutputs) -> Tensor:
    """The mean squared cosine of each kept complementary token to every other kept token of its sample."""
    values = []
    first = outputs.num_overlapping
    for m in outputs.tokens:
        for tokens, keep in zip(outputs.tokens[m], outputs.keep[m], strict=True):
            for i in range(first, len(tokens)):
                for j in range(len(tokens)):
                    if i == j or not keep[i] or not keep[j]:
                        continue
                    other = tokens[j].detach() if j < first else tokens[j]
                    values.append(((tokens[i] * other).sum() / tokens[i].norm() / other.norm()) ** 2)
    return torch.stack(values).mean()


@pytest.mark.parametrize("overlapping", [1, 3, 4])
def test_complementary_terms_equal_the_plain_loops(overlapping: int) -> None:
    """Kept tokens only; with 4 of 5 overlapping there is a single complementary token, and it still has others."""
    outputs = _outputs(("image", "text"), overlapping)
    terms = RegisterTokenLoss(1.0)(outputs, torch.arange(6))
    assert terms.complementary_l2.item() == pytest.approx(_slow_l2(outputs), rel=1e-5)
    expected = _slow_diversity(outputs)
    assert expected > 0.01
    assert terms.complementary_diversity.item() == pytest.approx(expected.item(), rel=1e-5)
    slow = torch.autograd.grad(expected, list(outputs.tokens.values()))
    fast = torch.autograd.grad(terms.complementary_diversity, list(outputs.tokens.values()))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_diversity_takes_no_gradient_on_overlapping_tokens() -> None:
    """They stay where the contrastive loss wants them; complementary tokens keep away, dropped ones do nothing."""
    outputs = _outputs(("image", "text"))
    RegisterTokenLoss(1.0)(outputs, torch.arange(6)).complementary_diversity.backward()
    for modality, tokens in outputs.tokens.items():
        keep = outputs.keep[modality]
        assert tokens.grad is not None
        assert (tokens.grad[:, :3] == 0).all()
        assert (tokens.grad[:, 3:][~keep[:, 3:]] == 0).all()
        assert (tokens.grad[:, 3:][keep[:, 3:]].abs().sum(dim=-1) > 0).all()


def test_diversity_of_known_angles() -> None:
    """One complementary token: at 60 degrees to an overlapping one and square to the other, 1/4 and 0."""
    tokens = torch.tensor([[[1.0, 0, 0], [0, 2, 0], [0.5, 0, 3**0.5 / 2]]])
    total, pairs = complementary_diversity(tokens, torch.ones(1, 3, dtype=torch.bool), 2)
    assert pairs.item() == 2
    assert total.item() == pytest.approx(0.25)
    total, pairs = complementary_diversity(tokens, torch.tensor([[True, False, False]]), 2)
    assert (total.item(), pairs.item()) == (0, 0)


def test_l2_of_a_known_token() -> None:
    """(3, 4) has squared norm 25 over 2 dimensions; a dropped token does not count."""
    total, count = complementary_l2(torch.tensor([[[3.0, 4.0], [7.0, 7.0]]]), torch.tensor([[True, False]]))
    assert (total.item(), count.item()) == (12.5, 1)


def test_gradcheck() -> None:
    """Numerical differentiation in float64, of what the diversity and the pooling do with their inputs."""
    keep = torch.tensor([[True, True, True, True], [True, True, True, False], [True, False, False, False]])
    tokens = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = (tokens * keep[..., None]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pool_kept(x, keep, 3), (tokens,))
    # The stop-gradient is not differentiable numerically: vary the complementary tokens alone.
    fixed, free = tokens[:2, :2].detach(), tokens[:2, 2:].detach()
    everything = torch.tensor([[True] * 4] * 2)
    kept = torch.where(free == 0, torch.ones_like(free), free).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: complementary_diversity(torch.cat([fixed, x], dim=1), everything, 2)[0], (kept,)
    )


@pytest.mark.parametrize("weight", [0.0, 0.01, 2.0])
def test_total_is_the_specified_sum(weight: float) -> None:
    outputs = _outputs(("image", "text"))
    terms = RegisterTokenLoss(weight)(outputs, torch.arange(6))
    expected = terms.contrastive + weight * (terms.complementary_l2 + terms.complementary_diversity)
    torch.testing.assert_close(terms.total.double(), expected.double(), rtol=1e-6, atol=0)
    assert terms.complementary_objective.item() == 0
    assert set(terms.items()) == {
        "total", "contrastive", "complementary_l2", "complementary_diversity", "complementary_objective",
    }  # fmt: skip
    assert not any(value.requires_grad for value in terms.items().values())


def test_a_batch_that_keeps_no_complementary_token_is_finite() -> None:
    """Nested dropout may drop them all, and a head may have none: both terms are 0, gradients finite."""
    dropped = RegisterOutputs(
        {m: torch.cat([torch.randn(4, 2, 8), torch.zeros(4, 2, 8)], dim=1).requires_grad_() for m in ("a", "b")},
        {m: torch.tensor([[True, True, False, False]] * 4) for m in ("a", "b")},
        2,
    )
    none = RegisterOutputs(
        {m: torch.randn(4, 2, 8, requires_grad=True) for m in ("a", "b")},
        {m: torch.ones(4, 2, dtype=torch.bool) for m in ("a", "b")},
        2,
    )
    for outputs in (dropped, none):
        terms = RegisterTokenLoss(1.0)(outputs, torch.arange(4))
        terms.total.backward()
        assert (terms.complementary_l2.item(), terms.complementary_diversity.item()) == (0, 0)
        assert terms.total.item() == pytest.approx(terms.contrastive.item())
        assert terms.total.isfinite()
        for tokens in outputs.tokens.values():
            assert tokens.grad is not None
            assert tokens.grad.isfinite().all()


def test_temperature_starts_at_0_07_and_is_clamped() -> None:
    loss = RegisterTokenLoss()
    assert 1 / loss.log_scale.exp().item() == pytest.approx(0.07)
    for value, expected in ((-1.0, 0.0), (9.0, math.log(100)), (1.5, 1.5)):
        loss.log_scale.data.fill_(value)
        loss.clamp_temperature()
        assert loss.log_scale.item() == pytest.approx(expected)
    assert math.log(100) == MAX_LOG_SCALE
    assert loss.log_scale.requires_grad


def test_the_temperature_learns() -> None:
    loss = RegisterTokenLoss()
    loss(_outputs(("image", "text")), torch.arange(6)).total.backward()
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad != 0


def test_half_precision_training_keeps_the_logits_in_float32() -> None:
    """Under autocast a matrix product would be bfloat16: at scale 100 a logit would be off by up to 0.25."""
    outputs = _outputs(("image", "text"))
    outputs = RegisterOutputs({m: t.detach().float() for m, t in outputs.tokens.items()}, outputs.keep, 3)
    loss = RegisterTokenLoss(1.0)
    loss.log_scale.data.fill_(MAX_LOG_SCALE)
    expected = loss(outputs, torch.arange(6)).items()
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(outputs, torch.arange(6)).items()
    for name, value in expected.items():
        assert actual[name].dtype == torch.float32, name
        torch.testing.assert_close(actual[name], value, rtol=1e-6, atol=1e-6)


def test_a_single_modality_is_refused() -> None:
    outputs = _outputs(("image", "text"))
    alone = RegisterOutputs({"image": outputs.tokens["image"]}, outputs.keep, 3)
    with pytest.raises(UsageError, match="two modalities or more; got image"):
        RegisterTokenLoss()(alone, torch.arange(6))


def test_ids_of_another_length_are_refused() -> None:
    with pytest.raises(UsageError, match="one id; got 5 ids"):
        RegisterTokenLoss()(_outputs(("image", "text")), torch.arange(5))


@pytest.mark.parametrize("weight", [-0.01, math.nan])
def test_a_negative_weight_is_refused(weight: float) -> None:
    with pytest.raises(UsageError, match="complementary_reg_weight is at least 0"):
        RegisterTokenLoss(weight)
