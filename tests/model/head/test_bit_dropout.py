"""Dropout from random bits: its rate, its expectation, its seed, and that only training has it."""

from __future__ import annotations

import pytest
import torch

from fluxtalk.model.head.bit_dropout import BitDropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("size", [(401, 251), (3,)])
def test_it_drops_its_share_and_keeps_the_mean(rate: float, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dropped = BitDropout(rate)(torch.ones(size))
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)), rtol=2e-4, atol=0)
    if dropped.numel() > 1000:
        assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.01)


def test_the_seed_decides_and_gradients_follow_the_mask() -> None:
    x = torch.ones(64, 33, requires_grad=True)
    both = []
    for _ in range(2):
        torch.manual_seed(5)
        both.append(BitDropout(0.3)(x))
    assert torch.equal(*both)
    both[0].sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, both[0].detach())


def test_without_training_or_rate_nothing_is_dropped() -> None:
    x = torch.randn(8, 8)
    assert torch.equal(BitDropout(0.5).eval()(x), x)
    assert torch.equal(BitDropout(0.0)(x), x)
