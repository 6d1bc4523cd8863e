"""A trainer on made-up features that train within seconds, and what tests read from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fluxtalk.artifacts.files import Identity
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.model.encoders import Features
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.loop.sampler import PairSampler
from fluxtalk.train.records.log import RunLog

IDS, LENGTH, DIM = 24, 5, 6


class Correlated:
    """Features of both modalities that share what an id is."""

    dim = DIM

    def __init__(self, seed: int) -> None:
        shared = np.random.default_rng(0).standard_normal((IDS, 1, DIM))
        own = np.random.default_rng(seed).standard_normal((IDS, LENGTH, DIM))
        self._values = torch.from_numpy((shared + 0.3 * own).astype(np.float32))

    def __len__(self) -> int:
        return IDS

    def batch(self, rows: NDArray[np.int64]) -> Features:
        lengths = torch.from_numpy(rows % LENGTH + 1)
        return Features(self._values[rows], torch.arange(LENGTH) < lengths[:, None])


CONFIG = TrainConfig(
    "stage1.pth", "runs", "run", batch_size=8, epochs=6, dim=16, heads=2, depth=2, self_attention=True, dropout=0.2,
    feature_dropout=0.1, token_dropout=0.2, ema_decay=0.9, eval_every=2, learning_rate=3e-3, device="cpu",
)  # fmt: skip


def registers_of(trainer: Trainer) -> Tensor:
    assert isinstance(trainer.head, RegisterTokenModule)
    return trainer.head.registers


def make_trainer(config: TrainConfig = CONFIG) -> Trainer:
    groups = np.arange(IDS)
    items = {m: Items(list(range(IDS)), groups, np.ones(IDS, dtype=bool)) for m in ("image", "text")}
    split = Split("train", tuple(map(str, groups)), items, np.zeros(IDS, dtype=bool))
    torch.manual_seed(config.seed)
    head = RegisterTokenModule(
        {"image": DIM, "text": DIM},
        config.dim,
        nested_dropout_rate=0.6,
        depth=config.depth,
        heads=config.heads,
        self_attention=config.self_attention,
        dropout=config.dropout,
        feature_dropout=config.feature_dropout,
        token_dropout=config.token_dropout,
        mean_path=config.mean_path,
        aggregation=config.aggregation,
        seed=config.seed,
    )
    sources: dict[str, FeatureSource] = {"image": Correlated(1), "text": Correlated(2)}
    sampler = PairSampler(split, config.batch_size, 1, 0, config.seed)
    return Trainer(config, head, sources, sampler, SingleProcess(), "f00d", Identity())


def score(head: TokenHead) -> Mapping[str, Any]:
    """A score that depends on the head, so that resuming must also restore what was best."""
    assert isinstance(head, RegisterTokenModule)
    return {"score": abs(math.sin(1e3 * head.registers.sum().item()))}


def run_in(trainer: Trainer, root: Path, validate: Callable[[TokenHead], Mapping[str, Any]] = score) -> bool:
    folder = RunFolder(root)
    return trainer.run(folder, RunLog(Identity(), folder), validate)


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    state = {f"head.{n}": p for n, p in trainer.step_module.state_dict().items()}
    assert trainer.optimizer_step.average is not None
    state |= {f"average.{n}": p for n, p in trainer.optimizer_step.average.items()}
    for index, (_, values) in enumerate(trainer.optimizer_step.optimizer.state.items()):
        state |= {f"optimizer.{index}.{n}": torch.as_tensor(v) for n, v in values.items()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)
