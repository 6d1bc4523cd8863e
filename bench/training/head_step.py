"""Processor time of a training step: a register head against a mean-pool MLP on the same frozen sequences.

Run it with OMP_WAIT_POLICY=passive: threads that spin while they wait would count as working.

The features are random numbers of the shapes of real encoders: only the time is measured. Heads take turns, so that
other work on the machine slows them alike; quote the ratio.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from bench.machine import processor
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.config import HeadConfig
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.model.head.baselines import MeanPoolHead
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.train.config import RECIPES, TrainConfig
from fluxtalk.train.loop.loader import Batch
from fluxtalk.train.loop.optimizer_step import OptimizerStep
from fluxtalk.train.loop.step import TrainingStep, build_loss

_LENGTHS = {"image": (49, 1280), "text": (8, 384)}
"""Vectors and their dimension: EfficientNet-Lite0 at 224 px, and MiniLM on captions."""
_MLP, _POOLED = "mean-pool + mlp", "the same, pooled before"
_HEADS: dict[str, dict[str, Any]] = {
    **{recipe: {"recipe": recipe} for recipe in RECIPES},
    **{f"recommended, feed-forward {width}": {"recipe": "recommended", "feed_forward": width} for width in (4, 2)},
}


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


def measure(batch_size: int, steps: int, names: Sequence[str] = tuple(_HEADS)) -> dict[str, float]:
    """Median processor seconds of a step, after two that do not count, by kind of head."""
    features = {m: torch.randn(batch_size, length, dim) for m, (length, dim) in _LENGTHS.items()}
    batch, pooled = _batch(features), _batch({m: values.mean(dim=1, keepdim=True) for m, values in features.items()})
    heads = {name: _timed(name, batch_size) for name in (_MLP, _POOLED, *names)}
    times: dict[str, list[float]] = {name: [] for name in heads}
    for number in range(steps + 2):
        for name, head in heads.items():
            times[name].append(head.seconds(pooled if name == _POOLED else batch, number))
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def _batch(features: dict[str, torch.Tensor]) -> Batch:
    numbers = torch.arange(len(next(iter(features.values()))))
    masks = {m: torch.ones(values.shape[:2], dtype=torch.bool) for m, values in features.items()}
    return Batch(numbers, numbers, dict.fromkeys(features, numbers), features, masks)


def _timed(name: str, batch_size: int) -> _Timed:
    dims = {m: dim for m, (_, dim) in _LENGTHS.items()}
    paths: dict[str, Any] = {"stage1_checkpoint": "none", "output_dir": "none", "log_name": "none"}
    if name in _HEADS:
        config = TrainConfig.with_recipe(**_HEADS[name], batch_size=batch_size, **paths)
    else:
        config = TrainConfig(batch_size=batch_size, num_register_tokens=1, num_overlapping_tokens=1, **paths)
    shared = {field: getattr(config, field) for field in HeadConfig.__dataclass_fields__ if hasattr(config, field)}
    sizes = HeadConfig(dims=dims, **shared)
    head: TokenHead = RegisterTokenModule.from_config(sizes) if name in _HEADS else MeanPoolHead(sizes, 0, "mlp")
    group = SingleProcess()
    loss = build_loss(config, head, group, batch_size)
    step = TrainingStep(head, loss, config, group, batch_size)
    step.train()
    return _Timed(step, OptimizerStep(head, loss, config, group, steps=1000))


@click.command()
@option("--batch-size", default=512, show_default=True, type=click.IntRange(min=2), help="Pairs of a step.")
@option("--steps", default=5, show_default=True, type=click.IntRange(min=1), help="Steps that are timed.")
@option("--head", "names", multiple=True, type=click.Choice(list(_HEADS)), help="Heads to measure.  [default: all]")
@click.option("-o", "--output", default="bench/results/head_step.json", type=click.Path(path_type=Path))
@debug_option
@sentence_errors
def main(batch_size: int, steps: int, names: tuple[str, ...], output: Path) -> None:
    """Measure the processor time of a step of each head, on one thread and on two, and its ratio to the MLP's."""
    threads: dict[int, dict[str, float]] = {}
    loads = {}
    for count in (1, 2):
        torch.set_num_threads(count)
        loads[count] = round(os.getloadavg()[0], 1)
        threads[count] = measure(batch_size, steps, names or tuple(_HEADS))
    write_json(
        output,
        {
            "machine": f"{processor()}, {available_cores()} cores",
            "date": time.strftime("%Y-%m-%d"),
            "git_revision": git_revision(),
            "torch": torch.__version__,
            "pairs": batch_size,
            "steps": steps,
            "features": _LENGTHS,
            "load_before": loads,
            "seconds_by_threads": threads,
        },
    )
    for count, seconds in threads.items():
        click.echo(f"{count} thread(s), load {loads[count]} before")
        for name, value in seconds.items():
            click.echo(f"{name:<32}{1000 * value:>8.0f} ms{value / seconds[_MLP]:>8.2f} times the MLP's")


if __name__ == "__main__":
    main()
