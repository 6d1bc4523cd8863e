"""Heads trained on features whose truth is known, by the same loop that trains any run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.quality.heads import NarrowTokensHead
from bench.quality.synthetic.data import InMemoryFeatures
from fluxtalk.artifacts.files import Identity
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.config import HeadConfig
from fluxtalk.datasets.pairs import Split
from fluxtalk.errors import TrainingError
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.loop.sampler import PairSampler
from fluxtalk.train.records.log import RunLog


@dataclass(frozen=True)
class Budget:
    """Data, steps and sizes, the same for every head."""

    steps: int = 600
    """Rounded up to whole epochs."""
    batch_size: int = 256
    dim: int = 32
    heads: int = 4
    tokens: int = 5
    overlapping: int = 4
    learning_rate: float = 4e-3
    train_items: int = 4000
    test_items: int = 2000
    probe_items: int = 2000
    """Training items that probes are fitted to."""

    @classmethod
    def quick(cls) -> Budget:
        """A smoke test: the whole path, no figure of meaning."""
        return cls(
            steps=4, batch_size=32, dim=16, tokens=3, overlapping=2, train_items=64, test_items=64, probe_items=64
        )


@dataclass(frozen=True)
class Variant:
    """A head and the way it is trained."""

    name: str
    label: str
    """Label in tables and pictures."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Training options that differ from the others'."""
    trained: bool = True
    """False leaves the random weights: the control of every probe."""
    width: int | None = None
    """Numbers of a token; None takes the head's own width."""


def training_options(variant: Variant, budget: Budget, seed: int, training_items: int) -> TrainConfig:
    """The options of one run; token dropout is the same everywhere, so that variants differ in their loss alone."""
    epochs = -(-budget.steps // max(1, training_items // min(budget.batch_size, training_items)))
    options: dict[str, Any] = {
        "batch_size": budget.batch_size,
        "epochs": epochs,
        "eval_every": epochs,
        "num_register_tokens": budget.tokens,
        "num_overlapping_tokens": budget.overlapping,
        "dim": budget.dim,
        "heads": budget.heads,
        "learning_rate": budget.learning_rate,
        "token_dropout": 0.1,
        "seed": seed,
        "device": "cpu",
    }
    return TrainConfig("in memory", "in memory", variant.name, **{**options, **variant.options})


def trained_head(
    variant: Variant, config: TrainConfig, sources: Mapping[str, InMemoryFeatures], split: Split
) -> TokenHead:
    """The head after the last step, in evaluation mode; with its random weights if the variant is not trained.

    Args:
        sources: modality to the training items' features.
        split: the same items as pairs.

    Raises:
        TrainingError: training was stopped by a signal, or its loss is not finite.
    """
    shared = {name: getattr(config, name) for name in HeadConfig.__dataclass_fields__ if name != "dims"}
    sizes = HeadConfig(dims={m: source.dim for m, source in sources.items()}, **shared)
    torch.manual_seed(config.seed)
    head: TokenHead = RegisterTokenModule.from_config(sizes, config.seed)
    if variant.width is not None:
        torch.manual_seed(config.seed)
        head = NarrowTokensHead(sizes, config.seed, variant.width)
    if variant.trained:
        sampler = PairSampler(split, config.batch_size, 1, 0, config.seed, config.accum_steps, config.items_per_id)
        trainer = Trainer(config, head, sources, sampler, SingleProcess(), "in memory", Identity())
        with tempfile.TemporaryDirectory() as folder:
            # The last step is what counts: nothing here is chosen by validation.
            log = RunLog(Identity(), None, active=False)
            finished = trainer.run(RunFolder(Path(folder)), log, lambda _: {"score": 0.0})
        if not finished:
            raise TrainingError("Training was stopped by a signal; start the benchmark again to go on.")
    return head.eval()
