"""Processor time of a training step: a register head against a mean-pool MLP on the same frozen sequences.

The features are random numbers of the shapes of real encoders: only the time is measured. Heads take turns, so that
other work on the machine slows them alike; quote the ratio.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import click
import torch

from fluxtalk.config import HeadConfig
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.model.head.baselines import MeanPoolHead
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.config import RECIPES, TrainConfig
from fluxtalk.train.loop.loader import Batch
from fluxtalk.train.loop.optimizer_step import OptimizerStep
from fluxtalk.train.loop.step import TrainingStep, build_loss

_LENGTHS = {"image": (49, 1280), "text": (16, 384)}
"""Vectors and their dimension: EfficientNet-Lite0 at 224 px, and MiniLM on captions."""


@dataclass(frozen=True)
class _Timed:
    """A head with all that a step needs."""

    step: TrainingStep
    optimizer: OptimizerStep

    def seconds(self, batch: Batch, number: int) -> float:
        """Take one step; its processor time."""
        started = time.process_time()
        self.optimizer.zero_grad()
        self.step.gradients(self.step.draws(number), 1, lambda: batch, self.optimizer.backward)
        self.optimizer.reduce_and_clip()
        self.optimizer.apply(number)
        return time.process_time() - started


def measure(batch_size: int, steps: int) -> dict[str, float]:
    """Median processor seconds of a step, after two that do not count, by kind of head."""
    lengths = _LENGTHS.items()
    features = {m: torch.randn(batch_size, length, dim) for m, (length, dim) in lengths}
    masks = {m: torch.ones(batch_size, length, dtype=torch.bool) for m, (length, _) in lengths}
    numbers = torch.arange(batch_size)
    batch = Batch(numbers, numbers, dict.fromkeys(features, numbers), features, masks)
    heads = {name: _timed(name, batch_size) for name in ("mean-pool + mlp", *RECIPES)}
    times: dict[str, list[float]] = {name: [] for name in heads}
    for number in range(steps + 2):
        for name, head in heads.items():
            times[name].append(head.seconds(batch, number))
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def _timed(name: str, batch_size: int) -> _Timed:
    dims = {m: dim for m, (_, dim) in _LENGTHS.items()}
    paths: dict[str, Any] = {"stage1_checkpoint": "none", "output_dir": "none", "log_name": "none"}
    if name in RECIPES:
        config = TrainConfig.with_recipe(name, batch_size=batch_size, **paths)
    else:
        config = TrainConfig(batch_size=batch_size, num_register_tokens=1, num_overlapping_tokens=1, **paths)
    shared = {field: getattr(config, field) for field in HeadConfig.__dataclass_fields__ if field != "dims"}
    sizes = HeadConfig(dims=dims, **shared)
    head: TokenHead = RegisterTokenModule.from_config(sizes) if name in RECIPES else MeanPoolHead(sizes, 0, "mlp")
    group = SingleProcess()
    loss = build_loss(config, head, group, batch_size)
    step = TrainingStep(head, loss, config, group, batch_size)
    step.train()
    return _Timed(step, OptimizerStep(head, loss, config, group, steps=1000))


@click.command()
@option("--batch-size", default=256, show_default=True, type=click.IntRange(min=2), help="Pairs of a step.")
@option("--steps", default=5, show_default=True, type=click.IntRange(min=1), help="Steps that are timed.")
@debug_option
@sentence_errors
def main(batch_size: int, steps: int) -> None:
    """Print the processor time of a step of each recipe, and its ratio to the MLP's."""
    torch.set_num_threads(1)
    seconds = measure(batch_size, steps)
    base = seconds["mean-pool + mlp"]
    for name, value in seconds.items():
        click.echo(f"{name:<18}{1000 * value:>8.0f} ms{value / base:>8.2f} times the MLP's")


if __name__ == "__main__":
    main()
