"""Batch, steps and dropouts of a training, from the number of training ids and the memory: each with its reason.

The figures are those that docs/quality.md and docs/LOG.md report; change them here, and only here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BATCHES = ((10_000, 256), (50_000, 512), (math.inf, 1024))
"""Training ids below which a step has that many pairs. 256 is what the recipe was measured with at 5,838 ids; more
negatives help where there are pairs enough to fill several steps per epoch."""
LEAST_STEPS_PER_EPOCH = 4
"""Steps into which an epoch is divided at least; small data then takes smaller batches."""
SMALLEST_BATCH = 16
STEPS = 1000
"""Steps that the recipe was measured with; what it gains, it gains late."""
LEAST_EPOCHS = 5
"""Passes over large data, for which 1,000 steps would be less."""
MOST_EPOCHS = 150
"""Passes over small data: the head overfits, and validation chose earlier heads in every trial."""
PAIRS_THAT_NEED_DROPOUT = 100_000
"""Ids below which the recipe's dropouts stay: with some thousand pairs they gave 6 points of recall at 10."""
RATE, RATE_BATCH, HIGHEST_RATE = 1e-3, 256, 2e-3
"""Learning rate up to a batch; it then grows with the root of the batch, to the rate of the demo at 1,024 pairs. On
icons, twice the rate found as much at rank 10 after 24 epochs as this one after 59, and ended lower (docs/LOG.md)."""
VALIDATIONS = 15
STEPS_BETWEEN_CHECKPOINTS = 100
"""Work that a kill may cost, besides validations."""

MEMORY_SHARE = 0.5
"""Share of the available memory that a forward pass may take."""
FEATURE_COPIES = 14
"""Float32 copies of a pair's features that training holds, read ahead and kept for the gradient: 12 were measured with
257 + 32 vectors of 384 numbers (both views of the objective `contrast`)."""
BYTES_PER_PAIR = 2**20
"""Memory of a pair besides its features: 0.75 MB were measured at width 256 with four tokens."""


@dataclass(frozen=True)
class Budget:
    """Options of a training that the data decide."""

    batch_size: int
    """Pairs of a forward pass."""
    accum_steps: int
    """Forward passes of a step, so that its pairs fit in memory."""
    epochs: int
    steps: int
    """Steps of the whole training."""
    eval_every: int
    """Epochs between validations."""
    learning_rate: float
    dropouts: Mapping[str, float]
    """Dropouts that replace those of the recipe."""
    reasons: tuple[str, ...] = field(default=())
    """A sentence for each choice."""

    def options(self) -> dict[str, Any]:
        """Name the options as `TrainConfig` does."""
        return {
            "batch_size": self.batch_size,
            "accum_steps": self.accum_steps,
            "epochs": self.epochs,
            "eval_every": self.eval_every,
            "learning_rate": self.learning_rate,
            "checkpoint_every": STEPS_BETWEEN_CHECKPOINTS,
            **self.dropouts,
        }


def choose_budget(
    training_ids: int,
    feature_bytes: int,
    available: int | None,
    batch_size: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
) -> Budget:
    """Choose what a training of these data takes.

    Args:
        training_ids: ids of the training split, at least 2.
        feature_bytes: float32 bytes of the longest features of one pair, all modalities together.
        available: bytes of memory that may be taken; None does not limit the batch.
        batch_size: pairs of a step, if the user says so.
        epochs: passes over the data, if the user says so.
        steps: steps of the whole training, if the user says so.
    """
    reasons = []
    if batch_size is None:
        batch = _batch(training_ids)
        reasons.append(f"{batch} pairs a step, for {training_ids:,} training ids: more are more negatives")
    else:
        batch = min(batch_size, training_ids)
        reasons.append(f"{batch} pairs a step, as asked")
    passes = _passes(batch, feature_bytes, available)
    if passes > 1:
        reasons.append(
            f"each in {passes} passes: a pair takes about {_pair_bytes(feature_bytes) / 1e6:.1f} MB in training, and "
            f"{(available or 0) / 1e9:.1f} GB of memory are available"
        )
    # A step is a whole number of passes.
    pass_size = max(1, batch // passes)
    batch = pass_size * passes
    per_epoch = max(1, training_ids // batch)
    if epochs is not None:
        chosen, why = epochs, "as asked"
    elif steps is not None:
        chosen, why = max(1, math.ceil(steps / per_epoch)), f"for the {steps:,} steps that were asked for"
    else:
        chosen = min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(STEPS / per_epoch)))
        why = f"{STEPS:,} steps are what the recipe was measured with, in {LEAST_EPOCHS} to {MOST_EPOCHS} epochs"
    reasons.append(f"{chosen * per_epoch:,} steps in {chosen} epochs, {why}")
    dropouts, why = _dropouts(training_ids)
    reasons.append(why)
    rate = min(HIGHEST_RATE, RATE * math.sqrt(max(1.0, batch / RATE_BATCH)))
    return Budget(
        batch_size=pass_size,
        accum_steps=passes,
        epochs=chosen,
        steps=chosen * per_epoch,
        eval_every=max(1, chosen // VALIDATIONS),
        learning_rate=float(f"{rate:.2g}"),
        dropouts=dropouts,
        reasons=tuple(reasons),
    )


def _batch(training_ids: int) -> int:
    """A power of two; all ids if there are hardly any."""
    wanted = next(size for bound, size in BATCHES if training_ids < bound)
    filling = 1 << int(math.log2(max(1, training_ids // LEAST_STEPS_PER_EPOCH)))
    return min(training_ids, max(SMALLEST_BATCH, min(wanted, filling)))


def _pair_bytes(feature_bytes: int) -> int:
    return FEATURE_COPIES * feature_bytes + BYTES_PER_PAIR


def _passes(batch: int, feature_bytes: int, available: int | None) -> int:
    """Count the forward passes, a power of two, into which memory divides a step."""
    passes = 1
    while (
        available is not None
        and passes < batch // 2
        and batch / passes * _pair_bytes(feature_bytes) > MEMORY_SHARE * available
    ):
        passes *= 2
    return passes


def _dropouts(training_ids: int) -> tuple[dict[str, float], str]:
    if training_ids < PAIRS_THAT_NEED_DROPOUT:
        return {}, f"dropouts as in the recipe: below {PAIRS_THAT_NEED_DROPOUT:,} ids the head overfits without"
    dropped = {"feature_dropout": 0.0, "token_dropout": 0.0}
    return dropped, f"no dropout on features, for {PAIRS_THAT_NEED_DROPOUT:,} ids and more (not measured at that size)"
