"""A trainer on features in memory: no files, no encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fluxtalk.artifacts.files import Identity
from fluxtalk.config import HeadConfig
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.model.encoders import Features
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.process_group import ProcessGroup, SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.loop.sampler import PairSampler
from fluxtalk.train.loop.train_state import Callback

IDS, LENGTH, DIM = 24, 5, 6


class InMemory:
    """Features that share what an id is; -1 is an absent item."""

    dim = DIM

    def __init__(self, groups: NDArray[np.int64], seed: int, dtype: torch.dtype = torch.float32) -> None:
        shared = np.random.default_rng(0).standard_normal((IDS, 1, DIM))
        own = np.random.default_rng(seed).standard_normal((len(groups), LENGTH, DIM))
        self._values = torch.from_numpy(shared[groups] + 0.3 * own).to(dtype)

    def __len__(self) -> int:
        return len(self._values)

    def batch(self, rows: NDArray[np.int64]) -> Features:
        lengths = torch.from_numpy(np.where(rows < 0, 0, rows % LENGTH + 1))
        return Features(self._values[rows], torch.arange(LENGTH) < lengths[:, None])


def items_of(groups: Sequence[int]) -> Items:
    return Items(list(groups), np.array(groups, dtype=np.int64), np.ones(len(groups), dtype=bool))


def three_modalities() -> dict[str, list[int]]:
    """Two images of each id, one text; sound for half of the ids."""
    return {
        "image": [i // 2 for i in range(2 * IDS)],
        "text": list(range(IDS)),
        "audio": list(range(0, IDS, 2)),
    }


def split_of(groups: Mapping[str, Sequence[int]]) -> Split:
    items = {m: items_of(g) for m, g in groups.items()}
    return Split("train", tuple(map(str, range(IDS))), items, np.zeros(IDS, dtype=bool))


def in_memory_trainer(
    config: TrainConfig,
    groups: Mapping[str, Sequence[int]],
    group: ProcessGroup | None = None,
    dtype: torch.dtype = torch.float32,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """A trainer of a small head with the options given."""
    group = group or SingleProcess()
    torch.manual_seed(config.seed)
    shared = {name: getattr(config, name) for name in HeadConfig.__dataclass_fields__ if name != "dims"}
    head = RegisterTokenModule.from_config(HeadConfig(dims=dict.fromkeys(groups, DIM), **shared), config.seed).to(dtype)
    sources: dict[str, FeatureSource] = {
        m: InMemory(np.array(g), seed, dtype) for seed, (m, g) in enumerate(groups.items())
    }
    sampler = PairSampler(
        split_of(groups),
        config.batch_size,
        group.size,
        group.rank,
        config.seed,
        config.accum_steps,
        config.items_per_id,
    )
    return Trainer(config, head, sources, sampler, group, "f00d", Identity(), callbacks=callbacks)
