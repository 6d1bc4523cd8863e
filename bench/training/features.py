"""Figures of the feature cache: training speed against encoders in the loop, gather speed, sizes on disk.

Speeds of one run are comparable with each other, not with another machine's: quote the ratios.
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from bench.latency.vit import vit_small
from bench.machine import processor
from fluxtalk.artifacts.files import Identity, git_revision, write_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.datasets import Items, PairDataset, Split
from fluxtalk.model.checkpoints.stage1 import Stage1, Stage1Modality, save_stage1
from fluxtalk.model.encoders import EncoderSpec
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.preprocess import FeaturesPreprocessor, ImagePreprocessor
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import join_process_group
from fluxtalk.train.engine import Trainer
from fluxtalk.train.features.cached import CachedFeatures
from fluxtalk.train.features.options import CacheOptions
from fluxtalk.train.features.sources import cached_features, fitted_reductions
from fluxtalk.train.inputs import read_inputs
from fluxtalk.train.run import build_trainer

_DIM, _PATCHES, _PAIRS, _BATCH = 384, 197, 192, 64
_CPU = torch.device("cpu")
_SHAPES = {"197 x 384, batch 256": (2000, 197, 384, 256), "16 x 144, batch 1024": (40000, 16, 144, 1024)}
"""Items, vectors, dimension and batch: ViT-S/16 at 224 px, and a small encoder."""
_OPTIONS = {
    "fp16": CacheOptions(),
    "int8": CacheOptions("int8"),
    "fp16, pool 2": CacheOptions(pool=2),
    "fp16, pca 128": CacheOptions(pca=128),
    "int8, pool 2, pca 128": CacheOptions("int8", pool=2, pca=128),
}


@click.command()
@click.option(
    "-o", "--output", default="bench/results/features.json", type=click.Path(path_type=Path), show_default=True
)
@option("--device", default="cpu", show_default=True, type=click.Choice(("cpu", "cuda")), help="Device to train on.")
@debug_option
@sentence_errors
def main(output: Path, device: str) -> None:
    """Measure everything in about three minutes on two cores, and write OUTPUT.

    Training is timed with one thread and with all: if other work keeps a core busy, small operations wait for
    their second thread, which slows training from the cache far more than the encoders. The load is recorded.
    """
    machine = f"{processor()}, {available_cores()} cores"
    if device == "cuda":
        machine += f", {torch.cuda.get_device_name()}"
    results: dict[str, Any] = {
        "machine": machine,
        "load_average_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        results["training"] = training_speed(root, device)
        results["gather"] = {name: gather_speed(root, *shape) for name, shape in _SHAPES.items()}
        results["sizes"] = sizes(root)
    write_json(output, results)
    click.echo(f"{machine}, load {results['load_average_before']} before; steps of {_BATCH} pairs:")
    for threads, row in results["training"]["by_threads"].items():
        click.echo(
            f"{threads} thread(s): {row['cache_samples_per_s']:,.0f} samples/s from the cache, "
            f"{row['online_samples_per_s']:,.1f} with the encoders in the loop: {row['ratio']:.0f} times"
        )
    for name, row in results["gather"].items():
        click.echo(f"gathering {name}: {row['items_per_s']:,.0f} items/s, {row['gb_per_s']:.2f} GB/s of float16 read")
    for name, row in results["sizes"].items():
        click.echo(f"{name:<24}{row['bytes_per_item'] / 1e3:>8.1f} KB per item{row['relative']:>8.2f} of fp16")
    click.echo(f"{output}")


def training_speed(root: Path, device: str) -> dict[str, Any]:
    """Samples per second of whole training steps, from the cache and with ViT-S/16 in the loop, taking turns."""
    stage1, table = root / "stage1.pth", _write_pairs(root)
    encoder = vit_small()
    image = Stage1Modality(
        EncoderSpec("module:bench.latency.vit:vit_small", {}, encoder.dim),
        encoder.state_dict(),
        ImagePreprocessor(224, 224),
    )
    text = Stage1Modality(EncoderSpec(f"features:{_DIM}", {}, _DIM), {}, FeaturesPreprocessor(_DIM))
    save_stage1(Stage1({"image": image, "text": text}, data=str(table)), stage1)
    config = TrainConfig(
        str(stage1), str(root), "speed", batch_size=_BATCH, cache_dir=str(root / "cache"), device=device
    )
    with join_process_group(device) as (group, torch_device):

        def trainer(encode: str) -> Trainer:
            chosen = replace(config, encode=encode)
            return build_trainer(chosen, read_inputs(chosen, group, torch_device), group, Identity())

        started = time.perf_counter()
        cached = trainer("cache")
        building = time.perf_counter() - started
        online = trainer("online")
        by_threads = {}
        for threads in sorted({1, available_cores()}):
            torch.set_num_threads(threads)
            fast, slow = _in_turns([lambda: _steps(cached, 10) / 10, lambda: _steps(online, 1)], rounds=3)
            by_threads[str(threads)] = {
                "cache_samples_per_s": round(_BATCH / fast, 1),
                "online_samples_per_s": round(_BATCH / slow, 2),
                "ratio": round(slow / fast, 1),
            }
    return {"building_items_per_s": round(_PAIRS / building, 2), "by_threads": by_threads}


def gather_speed(root: Path, items: int, length: int, dim: int, batch: int) -> dict[str, float]:
    """Random batches gathered from the cache, converted to float32."""
    stage1, data = _synthetic(items, length, dim)
    cached = cached_features(stage1, data, "train", "features", root / "gather", _CPU)
    rng = np.random.default_rng(0)
    (seconds,) = _in_turns([lambda: _timed(lambda: cached.batch(rng.integers(items, size=batch)))], rounds=25)
    return {
        "items_per_s": round(batch / seconds),
        "gb_per_s": round(batch * length * dim * 2 / seconds / 1e9, 3),
        "ms_per_batch": round(seconds * 1e3, 3),
    }


def sizes(root: Path) -> dict[str, dict[str, float]]:
    """Bytes on disk per item of 197 x 384 features, by option."""
    stage1, data = _synthetic(256, _PATCHES, _DIM)
    per_item: dict[str, float] = {}
    for name, options in _OPTIONS.items():
        cache = root / "sizes"
        reductions = fitted_reductions(stage1, data, options, cache, _CPU, SingleProcess())
        cached = cached_features(stage1, data, "train", "features", cache, _CPU, options, reductions.get("features"))
        per_item[name] = _bytes(cached, cache) / len(cached)
    return {n: {"bytes_per_item": round(b), "relative": round(b / per_item["fp16"], 3)} for n, b in per_item.items()}


def _bytes(cached: CachedFeatures, cache: Path) -> int:
    return sum(file.stat().st_size for file in cached.manifest.key.folder(cache).iterdir())


class _Random(Sequence[Any]):
    """Arrays drawn when they are asked for."""

    def __init__(self, items: int, length: int, dim: int) -> None:
        self._shape = (length, dim)
        self._rows = range(items)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        return np.random.default_rng(self._rows[row]).standard_normal(self._shape, dtype=np.float32)


def _synthetic(count: int, length: int, dim: int) -> tuple[Stage1, PairDataset]:
    items = Items(_Random(count, length, dim), np.arange(count), np.ones(count, dtype=bool))
    split = Split("train", tuple(map(str, range(count))), {"features": items}, np.zeros(count, dtype=bool))
    part = Stage1Modality(EncoderSpec(f"features:{dim}", {}, dim), {}, FeaturesPreprocessor(dim))
    name = f"random {count} {length} {dim}"
    return Stage1({"features": part}), PairDataset(name, ("features",), {"train": split}, name)


def _write_pairs(root: Path) -> Path:
    """Photograph-like JPEG files and feature sequences, as a user's table would name them."""
    rng = np.random.default_rng(0)
    with (root / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "id", "split"])
        for number in range(_PAIRS + 8):
            small = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            small.resize((320, 320), Image.Resampling.BICUBIC).save(root / f"{number}.jpg")
            np.save(root / f"{number}.npy", rng.standard_normal((16, _DIM), dtype=np.float32))
            split = "train" if number < _PAIRS else "validation"
            writer.writerow([f"{number}.jpg", f"{number}.npy", number, split])
    return root / "pairs.csv"


def _steps(trainer: Trainer, count: int) -> float:
    """Seconds of some whole training steps: features, forward, backward, update."""
    return _timed(lambda: [trainer.step() for _ in range(count)])


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _in_turns(measures: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Median seconds of each, taking turns, so that a change of the machine's speed meets all; one round warms up."""
    times = [[measure() for measure in measures] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


if __name__ == "__main__":
    main()
