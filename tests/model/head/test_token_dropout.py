"""Token dropout: uniform draws that depend on seed, row and position alone."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import kstest

from fluxtalk.model.head.token_dropout import hashed_uniform, hide_features


def test_draws_are_uniform_and_independent() -> None:
    values = hashed_uniform(3, torch.arange(400), 50)
    assert values.min() >= 0
    assert values.max() < 1
    assert kstest(values.flatten().numpy(), "uniform").pvalue > 1e-3
    for axis in (0, 1):
        shifted = np.corrcoef(values.numpy().flatten(), values.roll(1, axis).numpy().flatten())[0, 1]
        assert abs(shifted) < 0.03
    other = hashed_uniform(4, torch.arange(400), 50)
    assert abs(np.corrcoef(values.flatten().numpy(), other.flatten().numpy())[0, 1]) < 0.03


def test_splitmix64_against_python_integers() -> None:
    """The reference, in integers that do not wrap by themselves."""
    seed, word = 2**62 + 12345, (1 << 64) - 1
    got = hashed_uniform(seed, torch.tensor([0, 7, 2**20]), 3)
    for i, row in enumerate((0, 7, 2**20)):
        for position in range(3):
            x = (((row << 32) + position + seed) * 0x9E3779B97F4A7C15) & word
            x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
            x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
            x ^= x >> 31
            assert got[i, position].item() == (x >> 40) / 2**24


def test_padding_and_company_change_nothing() -> None:
    whole = hashed_uniform(5, torch.arange(10), 8)
    assert torch.equal(hashed_uniform(5, torch.tensor([3, 9]), 6), whole[[3, 9], :6])


def test_the_rate_is_kept_and_never_all_of_a_row_is_hidden() -> None:
    mask = torch.arange(20) < torch.randint(1, 21, (2000, 1), generator=torch.Generator().manual_seed(0))
    kept = hide_features(mask, hashed_uniform(1, torch.arange(2000), 20), 0.3)
    assert not (kept & ~mask).any()
    assert kept.any(dim=1).all()
    long = mask.sum(dim=1) > 10
    assert abs(1 - kept[long].sum() / mask[long].sum() - 0.3) < 0.01
    assert torch.equal(hide_features(mask, torch.rand(2000, 20), 0.0), mask)
