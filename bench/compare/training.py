"""Training on the same frozen features: ours beside a FuseMix-like script and sentence-transformers' own trainer.

All read one cache of features of real icons. Ours reads every feature vector; peers are made for one vector an item,
and read the mean. Batches, passes and warm-up are the same; peers may also take more passes, and validation chooses.
The test split is scored once, by the same function.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from bench.compare.contenders import OURS
from bench.compare.environments import python_of
from bench.encoders.torchvision_operators import declare_torchvision_operators
from bench.markdown import markdown_table
from fluxtalk.align.budget import choose_budget
from fluxtalk.datasets import PairDataset, load_dataset
from fluxtalk.datasets.pairs import Split
from fluxtalk.errors import BackendError, FluxTalkError
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.scoring.retrieval import ItemTokens, retrieval
from fluxtalk.train import TrainConfig, fit
from fluxtalk.train.config import RECIPES
from fluxtalk.train.features.sources import FeatureSource, cached_features
from fluxtalk.train.loop.train_state import Callback

MODALITIES = ("image", "text")
HELD_OUT = ("validation", "test")
MORE_PASSES = (1, 2)
"""Factors on the passes over the data that peers may take; validation chooses."""
_AT = "10"
_PEERS = Path(__file__).parent / "peers"
_QUERY = "?image=image&text=text&id=id&split=split"
_READ_TOGETHER = 512


@dataclass(frozen=True)
class TrainingPeer:
    """A way to train on frozen features that is not ours."""

    name: str
    label: str
    environment: str
    script: str
    options: Mapping[str, Any] = field(default_factory=dict)


PEERS = (
    TrainingPeer(
        "fusemix",
        "FuseMix-like",
        OURS,
        "fusemix.py",
        {"depth": 2, "widening": 2, "dropout": 0.3, "mixing": 1.0, "learning_rate": 1e-3, "weight_decay": 0.1},
    ),
    TrainingPeer(
        "st-trainer",
        "sentence-transformers' trainer, Dense layers",
        "sentence-transformers",
        "st_trainer.py",
        {"widening": 4, "dropout": 0.3, "scale": 20.0, "learning_rate": 1e-3, "weight_decay": 0.1},
    ),
)


def measure(
    icons: Path, stage1: Path, cache_dir: Path, environments: Path, threads: int, epochs: int, seed: int = 0
) -> dict[str, Any]:
    """Train every contender and score it.

    Args:
        icons: folder that ``python -m bench.icons`` built.
        epochs: passes over the training ids.

    Returns:
        ``contenders``: name to label, numbers of a vector, steps, seconds of a step, parameters, and recall at 10 by
        direction; ``failed``: name to reason.
    """
    declare_torchvision_operators()  # timm imports torchvision
    torch.set_num_threads(threads)
    data = f"{icons / 'icons-4500.csv'}{_QUERY}"
    encoders = load_stage1(stage1)
    dataset = load_dataset(data, cache_dir, encoders.kinds)
    budget = choose_budget(len(dataset.split("train").ids), 0, None, epochs=epochs)
    content: dict[str, Any] = {"contenders": {}, "failed": {}, "epochs": epochs, "batch_size": budget.batch_size}
    content["seed"] = seed
    with tempfile.TemporaryDirectory() as folder:
        features = Path(folder) / "features.npz"
        write_pooled(features, encoders, dataset, cache_dir)
        options = {**RECIPES["recommended"], **budget.options(), "recipe": "recommended", "data": data, "seed": seed}
        settings = {"cache_dir": str(cache_dir), "device": "cpu", **options}
        content["contenders"] |= train_ours(TrainConfig(str(stage1), folder, "ours", **settings))
        numbers = max(one["numbers"] for one in content["contenders"].values())
        for peer in PEERS:
            given = {"features": str(features), "batch_size": budget.batch_size, "dim": numbers, "seed": seed}
            given |= {"threads": threads, "options": dict(peer.options)}
            try:
                content["contenders"][peer.name] = train_peer(peer, environments, given, epochs, dataset, Path(folder))
            except FluxTalkError as error:
                content["failed"][peer.name] = str(error)
    return content


def write_pooled(path: Path, stage1: Stage1, dataset: PairDataset, cache_dir: Path) -> None:
    """Write the mean of each item's features: all of training, with ids, and the counted ones of what is held out."""
    arrays: dict[str, NDArray[Any]] = {}
    for split in ("train", *HELD_OUT):
        for m in MODALITIES:
            items = dataset.split(split).items[m]
            source = cached_features(stage1, dataset, split, m, cache_dir, torch.device("cpu"))
            rows = np.arange(len(items)) if split == "train" else np.flatnonzero(items.counted)
            arrays[f"{split}_{m}"] = pooled(source, rows)
            if split == "train":
                arrays[f"{split}_{m}_ids"] = items.groups[rows]
    np.savez(path, **arrays)  # type: ignore[arg-type]


def pooled(source: FeatureSource, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Average the feature vectors of each row, without padding: (rows, dim)."""
    found = []
    for start in range(0, len(rows), _READ_TOGETHER):
        features, mask = source.batch(rows[start : start + _READ_TOGETHER])
        weights = mask[..., None].float()
        found.append(((features * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)).numpy())
    return np.concatenate(found)


class StepTimes(Callback):
    """Seconds of each step, those of validations left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.steps = 0
        self.parameters = 0
        self._begin: float | None = None

    def on_step(self, step: int, losses: Mapping[str, float]) -> None:
        """See `Callback.on_step`."""
        now = time.perf_counter()
        if self._begin is not None:
            self.seconds.append(now - self._begin)
        self._begin, self.steps = now, step

    def on_validation(self, step: int, scores: Mapping[str, Any], head: TokenHead) -> None:
        """See `Callback.on_validation`."""
        self.parameters = sum(p.numel() for p in head.parameters())
        self._begin = None


def train_ours(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Train as `fluxtalk-train` does; give a row for the first token alone and for all."""
    times = StepTimes()
    scores = fit(config, callbacks=[times]).scores
    if scores is None:
        raise BackendError("Training was stopped by a signal before its end; start the benchmark again.")
    shared = {
        "ours": True,
        "steps": times.steps,
        "seconds_per_step": round(statistics.median(times.seconds), 4),
        "parameters": times.parameters,
    }
    found = {}
    for k in (1, config.num_overlapping_tokens):
        recall = {direction: by_k[str(k)][_AT] for direction, by_k in scores["recall"].items()}
        label = f"FluxTalk, --recipe recommended, k = {k}"
        found[f"ours-{k}"] = {
            "label": label,
            "numbers": k * (config.token_dim or config.dim),
            **shared,
            "recall_at_10": recall,
        }
    return found


def train_peer(
    peer: TrainingPeer, environments: Path, given: dict[str, Any], epochs: int, dataset: PairDataset, folder: Path
) -> dict[str, Any]:
    """Train a peer with each number of passes, and score the one that validation prefers.

    Raises:
        UsageError: its environment is not installed.
        BackendError: its script ended with an error; the sentence holds its last line.
    """
    tried = []
    for factor in MORE_PASSES:
        output = folder / f"{peer.name}-{factor}.npz"
        report = _run(peer, environments, {**given, "epochs": factor * epochs, "output": str(output)})
        with np.load(output) as vectors:
            recall = {split: _recall(vectors, split, dataset.split(split)) for split in HELD_OUT}
        tried.append({"epochs": factor * epochs, **report, "recall_at_10": recall})
        click.echo(f"{peer.label}, {factor * epochs} epochs: {report['seconds']:.0f} s")
    best = max(tried, key=lambda one: statistics.fmean(one["recall_at_10"]["validation"].values()))
    return {
        "label": f"{peer.label}, {best['epochs']} epochs",
        "ours": False,
        "numbers": given["dim"],
        "steps": best["steps"],
        "seconds_per_step": round(best["seconds"] / best["steps"], 4),
        "parameters": best["parameters"],
        "recall_at_10": best["recall_at_10"]["test"],
        "options": dict(peer.options),
        "tried": tried,
    }


def _run(peer: TrainingPeer, environments: Path, given: dict[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(given["threads"]), "HF_HUB_OFFLINE": "1"}
    words = [str(python_of(peer.environment, environments)), str(_PEERS / peer.script), json.dumps(given)]
    ran = subprocess.run(words, capture_output=True, text=True, env=environment)
    if ran.returncode:
        said = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BackendError(f"{peer.label} ended: {said}")
    report: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return report


def _recall(vectors: Mapping[str, NDArray[np.float32]], split: str, part: Split) -> dict[str, float]:
    items = {m: ItemTokens(vectors[f"{split}_{m}"][:, None], 1) for m in MODALITIES}
    return {direction: by_k["1"][_AT] for direction, by_k in retrieval(items, part)["recall"].items()}


def training_table(content: dict[str, Any]) -> str:
    """Write milliseconds of a step, seconds of all steps, and recall at 10 of every contender."""
    directions: Sequence[str] = list(next(iter(content["contenders"].values()))["recall_at_10"])
    rows = [
        [
            one["label"],
            one["numbers"],
            f"{one['parameters'] / 1e6:.1f}",
            f"{1e3 * one['seconds_per_step']:.0f}",
            f"{one['steps'] * one['seconds_per_step']:.0f}",
            *(f"{100 * one['recall_at_10'][direction]:.1f}" for direction in directions),
        ]
        for one in content["contenders"].values()
    ]
    named = [f"R@10, {direction.replace('->', ' to ')}" for direction in directions]
    return markdown_table(["", "numbers", "parameters, M", "ms a step", "s in all", *named], rows)
