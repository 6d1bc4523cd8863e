"""Memory of a contrastive batch of 32,768: the loss alone, and a whole step with gradient caching.

Each figure is the growth of a fresh process's peak resident memory, so that nothing else counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from bench.machine import processor
from fluxtalk.artifacts.files import Identity, git_revision, write_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.errors import FluxTalkError
from fluxtalk.model.encoders import Features
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import RegisterOutputs
from fluxtalk.model.losses.register_loss import RegisterTokenLoss
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.loop.sampler import PairSampler

_DIM = 256
_LENGTH, _FEATURE = 50, 384


class Generated:
    """Random features, made when they are asked for: as of ViT-S/16, averaged four by four."""

    dim = _FEATURE

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def batch(self, rows: NDArray[np.int64]) -> Features:
        generator = torch.Generator().manual_seed(int(rows[0]))
        values = torch.randn(len(rows), _LENGTH, _FEATURE, generator=generator)
        return Features(values, torch.ones(len(rows), _LENGTH, dtype=torch.bool))


@click.command()
@option("--batch", default=32768, show_default=True, type=click.IntRange(64), help="Rows of the global batch.")
@option("--passes", default=64, show_default=True, type=click.IntRange(2), help="Forward passes of the whole step.")
@click.option("-o", "--output", default="bench/results/large_batch.json", type=click.Path(path_type=Path))
@click.option("--measure", hidden=True, type=click.Choice(("loss", "step")))
@debug_option
@sentence_errors
def main(batch: int, passes: int, output: Path, measure: str | None) -> None:
    """Measure the loss and the step at BATCH rows, in about ten minutes on two cores."""
    if measure is not None:
        click.echo(json.dumps(_growth(measure, batch, passes)))
        return
    results: dict[str, Any] = {
        "machine": f"{processor()}, {available_cores()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "torch": torch.__version__,
        "batch": batch,
        "passes": passes,
        "dim": _DIM,
        "features": [_LENGTH, _FEATURE],
    }
    for what in ("loss", "step"):
        command = [sys.executable, "-m", "bench.training.large_batch", "--batch", str(batch), "--passes", str(passes)]
        done = subprocess.run([*command, "--measure", what], capture_output=True, text=True)
        if done.returncode:
            raise FluxTalkError(f"Measuring the {what} failed: {done.stderr.strip()[-300:]}")
        results[what] = json.loads(done.stdout)
        click.echo(f"{what}: {results[what]['mb']:,} MB more, {results[what]['seconds']} s")
    write_json(output, results)
    click.echo(f"{output}")


def _growth(what: str, batch: int, passes: int) -> dict[str, float]:
    warm, measured = _loss(64), _loss(batch)
    if what == "step":
        warm, measured = _step(64, 2), _step(batch, passes)
    warm()
    before, started = _peak(), time.perf_counter()
    measured()
    return {"mb": round((_peak() - before) / 1024), "seconds": round(time.perf_counter() - started, 1)}


def _peak() -> int:
    """Peak resident KB of this process. (``ru_maxrss`` remembers the process that started it.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _loss(rows: int) -> Any:
    def run() -> None:
        # Tokens and their gradients belong to the head; what comes on top is the loss.
        tokens = {m: torch.randn(rows, 1, _DIM, requires_grad=True) for m in ("image", "text")}
        keep = {m: torch.ones(rows, 1, dtype=torch.bool) for m in tokens}
        RegisterTokenLoss()(RegisterOutputs(tokens, keep, 1), torch.arange(rows)).total.backward()

    return run


def _step(rows: int, passes: int) -> Any:
    def run() -> None:
        modalities = ("image", "text")
        config = TrainConfig("-", "-", "-", batch_size=rows // passes, accum_steps=passes, dim=_DIM, epochs=1)
        groups = np.arange(rows)
        items = {m: Items(range(rows), groups, np.ones(rows, dtype=bool)) for m in modalities}
        split = Split("train", tuple(map(str, range(rows))), items, np.zeros(rows, dtype=bool))
        head = RegisterTokenModule(dict.fromkeys(modalities, _FEATURE), _DIM, dropout=config.dropout)
        sources: dict[str, FeatureSource] = {m: Generated(rows) for m in modalities}
        sampler = PairSampler(split, config.batch_size, 1, 0, 0, passes)
        trainer = Trainer(config, head, sources, sampler, SingleProcess(), "none", Identity())
        trainer.step_module.train()
        _, bad = trainer.step()
        assert bad is None

    return run


if __name__ == "__main__":
    main()
