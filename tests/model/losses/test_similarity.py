"""Late interaction in training, and the loss at several fixed k."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fluxtalk.model.head.token_head import RegisterOutputs
from fluxtalk.model.losses.register_loss import RegisterTokenLoss
from fluxtalk.model.losses.similarity import Vectors, aggregate, similarity

ROWS, TOKENS, DIM = 6, 4, 8


def _tokens(seed: int) -> Tensor:
    return torch.randn(ROWS, TOKENS, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _vectors(seed: int) -> Vectors:
    keep = torch.arange(TOKENS) < (torch.arange(ROWS) % TOKENS + 1)[:, None]
    return aggregate("maxsim", _tokens(seed), keep, TOKENS)


def test_the_soft_maximum_is_the_log_mean_exp_of_the_kept_vectors() -> None:
    anchors, candidates = _vectors(0), _vectors(1)
    found = similarity(anchors, candidates, sharpness=10.0)
    for a in range(ROWS):
        for c in range(ROWS):
            scores = []
            for vector, kept in zip(anchors.unit_BVD[a], anchors.keep_BV[a], strict=True):
                if kept:
                    cosines = (candidates.unit_BVD[c][candidates.keep_BV[c]] @ vector).tolist()
                    scores.append(math.log(sum(math.exp(10 * x) for x in cosines) / len(cosines)) / 10)
            assert found[a, c].item() == pytest.approx(sum(scores) / len(scores), abs=1e-12)


def test_it_nears_the_maximum_and_gives_every_vector_a_gradient() -> None:
    anchors, candidates = _vectors(0), _vectors(1)
    hard = similarity(anchors, candidates)
    assert (similarity(anchors, candidates, 10.0) <= hard + 1e-12).all()
    torch.testing.assert_close(similarity(anchors, candidates, 1e5), hard, rtol=0, atol=1e-4)
    unit = candidates.unit_BVD.clone().requires_grad_()
    similarity(anchors, Vectors(unit, candidates.keep_BV), 10.0).sum().backward()  # type: ignore[no-untyped-call]
    assert unit.grad is not None
    assert torch.equal(unit.grad.abs().sum(dim=-1) > 0, candidates.keep_BV)


@pytest.mark.parametrize("aggregation", ["mean", "concat", "maxsim"])
def test_the_loss_at_fixed_k_is_the_mean_over_them_each_with_its_temperature(aggregation: str) -> None:
    keep = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    outputs = RegisterOutputs({"image": _tokens(0), "text": _tokens(1)}, {"image": keep, "text": keep}, TOKENS)
    ids, ks, scales = torch.arange(ROWS), (1, 2, 4), (5.0, 10.0, 20.0)
    loss = RegisterTokenLoss(0.0, aggregation=aggregation, k_values=ks, maxsim_sharpness=10.0).double()
    loss.log_scale.data = torch.tensor(scales, dtype=torch.float64).log()
    found = loss(outputs, ids)
    expected = 0.0
    for k, scale in zip(ks, scales, strict=True):
        one = RegisterTokenLoss(0.0, aggregation=aggregation, maxsim_sharpness=10.0).double()
        one.log_scale.data.fill_(math.log(scale))
        first = RegisterOutputs(outputs.tokens, {m: keep & (torch.arange(TOKENS) < k) for m in outputs.keep}, TOKENS)
        expected += one(first, ids).contrastive.item() / len(ks)
    assert found.contrastive.item() == pytest.approx(expected, abs=1e-9)
    found.total.backward()
    assert loss.log_scale.grad is not None
    assert (loss.log_scale.grad != 0).all()
    loss.log_scale.data.fill_(9.0)
    loss.clamp_temperature()
    assert loss.log_scale.exp().tolist() == pytest.approx([100.0] * 3)


@pytest.mark.parametrize("aggregation", ["mean", "concat", "maxsim"])
@pytest.mark.parametrize("ks", [(), (1, 3)])
def test_the_loss_at_nested_sizes_is_the_mean_over_them_and_whole_tokens(aggregation: str, ks: tuple[int, ...]) -> None:
    keep = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    outputs = RegisterOutputs({"image": _tokens(0), "text": _tokens(1)}, {"image": keep, "text": keep}, TOKENS)
    ids, sizes = torch.arange(ROWS), (1, 2, outputs.tokens["image"].shape[2])
    loss = RegisterTokenLoss(0.0, aggregation=aggregation, k_values=ks, nested_dims=sizes[:-1]).double()
    found = loss(outputs, ids)
    expected = 0.0
    for size in sizes:
        one = RegisterTokenLoss(0.0, aggregation=aggregation, k_values=ks).double()
        cut = RegisterOutputs({m: t[..., :size] for m, t in outputs.tokens.items()}, outputs.keep, TOKENS)
        expected += one(cut, ids).contrastive.item() / len(sizes)
    assert found.contrastive.item() == pytest.approx(expected, abs=1e-9)
    found.total.backward()
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad.shape == (len(sizes) * max(1, len(ks)),)
