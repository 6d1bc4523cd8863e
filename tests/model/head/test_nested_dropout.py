"""Nested dropout: the marginals of every schedule, prefixes only, reproducible and independent draws."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from fluxtalk.config import SCHEDULES
from fluxtalk.errors import UsageError
from fluxtalk.model.head.nested_dropout import NestedDropout, drop_probabilities
from fluxtalk.model.head.registers import RegisterTokenModule


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("tokens", "rate"), [(2, 0.3), (4, 0.5), (8, 0.8), (5, 0.0)])
def test_first_never_and_last_with_the_rate(schedule: str, tokens: int, rate: float) -> None:
    """Every schedule begins at 0, never falls, and ends at the rate."""
    p = drop_probabilities(tokens, rate, schedule)
    assert p.shape == (tokens,)
    assert p.dtype == torch.float64
    assert p[0] == 0
    assert p[-1].item() == pytest.approx(rate, abs=1e-15)
    assert (p.diff() >= 0).all()


def test_linear_is_evenly_spaced() -> None:
    """The specified schedule: rate (i - 1) / (n - 1)."""
    assert drop_probabilities(4, 0.5).tolist() == pytest.approx([0, 0.5 / 3, 1.0 / 3, 0.5], abs=1e-15)
    assert drop_probabilities(8, 0.8).tolist() == pytest.approx([0.8 * i / 7 for i in range(8)], abs=1e-15)


def test_pow2_and_geometric_by_hand() -> None:
    """Worked out on paper: where the shorter lengths are powers of two, or each half as likely as the one before."""
    third = 0.6 / 3  # the lengths 1, 2 and 4
    assert drop_probabilities(8, 0.6, "pow2").tolist() == pytest.approx(
        [0, third, 2 * third, 2 * third, 0.6, 0.6, 0.6, 0.6], abs=1e-15
    )
    assert drop_probabilities(4, 0.7, "geometric").tolist() == pytest.approx([0, 0.4, 0.6, 0.7], abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_token_is_never_dropped(schedule: str) -> None:
    assert drop_probabilities(1, 0.9, schedule).tolist() == [0.0]
    assert NestedDropout(1, 0.9, schedule).sample(64, 0, "image").tolist() == [1] * 64


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
def test_a_rate_outside_0_to_1_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match=r"\[0, 1\); got"):
        drop_probabilities(4, rate)
    with pytest.raises(UsageError, match=r"\[0, 1\); got"):
        RegisterTokenModule({"image": 8}, dim=8, heads=2, nested_dropout_rate=rate)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match="linear, uniform, pow2, geometric; got 'cosine'"):
        drop_probabilities(4, 0.5, "cosine")


def test_a_rate_that_starves_the_full_set_warns() -> None:
    """Above (N - 1) / N the full set is trained less often than each shorter prefix."""
    with pytest.warns(UserWarning, match=r"rates up to 0\.75 avoid that"):
        NestedDropout(4, 0.76)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NestedDropout(4, 0.75)
        NestedDropout(1, 0.9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stratification_makes_the_marginals_of_each_batch_exact(schedule: str) -> None:
    """The share of dropped tokens is the schedule's probability to within one sample."""
    dropout = NestedDropout(6, 0.7, schedule)
    for batch in (7, 32, 100):
        for step in range(20):
            lengths = dropout.sample(batch, step, "image")
            assert lengths.shape == (batch,)
            dropped = torch.stack([(lengths <= i).sum() for i in range(6)]).double() / batch
            assert (dropped - dropout.probabilities).abs().max() <= 1 / batch + 1e-12, (batch, step)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_marginals_hold_without_the_help_of_stratification(schedule: str) -> None:
    """Batches of one cannot be stratified: over many steps the shares come within five standard deviations."""
    dropout = NestedDropout(5, 0.6, schedule)
    count = 4000
    lengths = torch.cat([dropout.sample(1, step, "text") for step in range(count)])
    for i, p in enumerate(dropout.probabilities.tolist()):
        share = (lengths <= i).double().mean().item()
        assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / count), (i, share, p)


def test_each_row_has_the_marginals_too() -> None:
    """The strata are dealt out at random: the first row of a batch is nothing special."""
    dropout = NestedDropout(4, 0.5)
    count = 3000
    firsts = torch.stack([dropout.sample(8, step, "image")[0] for step in range(count)])
    for i, p in enumerate(dropout.probabilities.tolist()):
        share = (firsts <= i).double().mean().item()
        assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / count), (i, share, p)


def test_the_same_seed_step_and_modality_give_the_same_draw() -> None:
    """Any of the three changes it, whatever the global generator does in between."""
    draw = NestedDropout(4, 0.5, seed=3).sample(256, 17, "image")
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(draw, NestedDropout(4, 0.5, seed=3).sample(256, 17, "image"))
    for other in (
        NestedDropout(4, 0.5, seed=4).sample(256, 17, "image"),
        NestedDropout(4, 0.5, seed=3).sample(256, 18, "image"),
        NestedDropout(4, 0.5, seed=3).sample(256, 17, "text"),
    ):
        assert not torch.equal(draw, other)


def test_modalities_draw_independently() -> None:
    """Otherwise the length itself would tell positives from negatives."""
    dropout = NestedDropout(4, 0.7)
    rows = {
        m: torch.cat([dropout.sample(50, step, m) for step in range(200)]).double() for m in ("image", "text", "audio")
    }
    correlation = torch.corrcoef(torch.stack(list(rows.values())))
    off_diagonal = correlation[~torch.eye(3, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 5 / math.sqrt(10_000)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_head_in_training_keeps_prefixes_and_always_the_first_token(schedule: str) -> None:
    """End to end: the masks and the tokens of the head itself."""
    head = RegisterTokenModule(
        {"image": 6, "text": 5},
        dim=8,
        heads=2,
        num_register_tokens=5,
        nested_dropout_rate=0.75,
        nested_dropout_schedule=schedule,
    ).train()
    features = {"image": torch.randn(40, 3, 6), "text": torch.randn(40, 4, 5)}
    lengths_seen: set[int] = set()
    for _ in range(5):
        outputs = head(features)
        for modality in features:
            keep = outputs.keep[modality]
            assert keep[:, 0].all()
            assert not (keep[:, 1:] & ~keep[:, :-1]).any(), "a kept token after a dropped one"
            norms = outputs.tokens[modality].norm(dim=-1)
            assert (norms[~keep] == 0).all()
            assert (norms[keep] > 0).all()
            lengths_seen |= set(keep.sum(dim=1).tolist())
    assert {1, 5} <= lengths_seen
    assert len(lengths_seen) >= 4


def test_a_head_draws_anew_in_every_training_step() -> None:
    head = RegisterTokenModule({"image": 6}, dim=8, heads=2).train()
    features = {"image": torch.randn(64, 3, 6)}
    first, second = head(features).keep["image"], head(features).keep["image"]
    assert not torch.equal(first, second)


def test_nothing_is_dropped_in_evaluation() -> None:
    head = RegisterTokenModule({"image": 6}, dim=8, heads=2, nested_dropout_rate=0.75)
    features = {"image": torch.randn(64, 3, 6)}
    assert not head.train()(features).keep["image"].all()
    outputs = head.eval()(features)
    assert outputs.keep["image"].all()
    assert (outputs.tokens["image"].norm(dim=-1) > 0).all()
    assert torch.equal(outputs.tokens["image"], head(features).tokens["image"])


def test_nothing_is_dropped_where_k_is_asked_for() -> None:
    """A caller who asks for k tokens gets k tokens, in training too."""
    head = RegisterTokenModule({"image": 6}, dim=8, heads=2, nested_dropout_rate=0.75).train()
    outputs = head({"image": torch.randn(64, 3, 6)}, k=3)
    assert outputs.keep["image"].shape == (64, 3)
    assert outputs.keep["image"].all()


def test_given_lengths_are_what_is_kept() -> None:
    """The trainer passes its own share of the global draw."""
    head = RegisterTokenModule({"image": 6}, dim=8, heads=2).train()
    lengths = torch.tensor([1, 4, 2, 3])
    keep = head({"image": torch.randn(4, 3, 6)}, prefix_lengths={"image": lengths}).keep["image"]
    assert keep.sum(dim=1).tolist() == [1, 4, 2, 3]
