"""Batch, steps and dropouts follow from the data's size and the memory."""

from __future__ import annotations

import pytest

from fluxtalk.align.budget import choose_budget
from fluxtalk.train.config import TrainConfig

FEATURES = 4 * (257 + 32) * 384
"""Bytes of one pair of DINOv2 and MiniLM features."""


@pytest.mark.parametrize(
    ("ids", "batch", "epochs", "steps"),
    [
        (2, 2, 150, 150),
        (96, 16, 150, 900),
        (5_838, 256, 46, 1_012),
        (40_000, 512, 13, 1_014),
        (1_000_000, 1_024, 5, 4_880),
    ],
)
def test_larger_data_take_larger_batches_and_fewer_epochs(ids: int, batch: int, epochs: int, steps: int) -> None:
    budget = choose_budget(ids, FEATURES, None)
    assert (budget.batch_size, budget.accum_steps, budget.epochs, budget.steps) == (batch, 1, epochs, steps)
    assert budget.learning_rate == (2e-3 if batch == 1_024 else 1.4e-3 if batch == 512 else 1e-3)
    assert bool(budget.dropouts) == (ids >= 100_000)
    config = TrainConfig.with_recipe(
        "recommended", stage1_checkpoint="s", output_dir="o", log_name="n", **budget.options()
    )
    assert config.token_dropout == (0.0 if ids >= 100_000 else 0.3)


def test_little_memory_divides_a_step_into_passes_and_says_so() -> None:
    """A pair takes 7.3 MB: 256 at once 1.9 GB."""
    budget = choose_budget(5_838, FEATURES, 2 * 10**9)
    assert (budget.batch_size, budget.accum_steps) == (128, 2)
    assert [reason for reason in budget.reasons if "2 passes" in reason and "2.0 GB of memory" in reason]
    assert choose_budget(5_838, FEATURES, 10 * 10**9).accum_steps == 1
    least = choose_budget(5_838, FEATURES, 0)
    assert (least.batch_size, least.accum_steps) == (2, 128)


def test_what_is_asked_for_is_taken() -> None:
    budget = choose_budget(5_838, FEATURES, None, batch_size=100, steps=500)
    assert (budget.batch_size, budget.epochs, budget.steps) == (100, 9, 522)
    assert "as asked" in budget.reasons[0]
    assert "500 steps that were asked for" in budget.reasons[1]
    assert choose_budget(5_838, FEATURES, None, epochs=3).epochs == 3
    assert choose_budget(60, FEATURES, None, batch_size=100).batch_size == 60
