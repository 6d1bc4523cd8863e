"""Recall lost by storing features smaller: the same training on glyphs with each kind of cache."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench.machine import processor
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.train import TrainConfig, fit

STAGE1 = Path(__file__).parents[1] / "stage1" / "glyphs.pth"
OPTIONS: dict[str, dict[str, Any]] = {
    "fp16": {},
    "int8": {"feature_dtype": "int8"},
    "pool 2": {"feature_pool": 2},
    "pca 64": {"feature_pca": 64},
    "int8, pool 2, pca 64": {"feature_dtype": "int8", "feature_pool": 2, "feature_pca": 64},
}


@click.command()
@option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Training runs of each kind.")
@option(
    "--epochs", default=20, show_default=True, type=click.IntRange(1), help="Epochs, of 11 steps of 512 pairs each."
)
@option("--cache_dir", type=click.Path(path_type=Path), help="Cache of rendered glyphs.  [default: a temporary folder]")
@click.option("-o", "--output", default="bench/results/feature_options.json", type=click.Path(path_type=Path))
@debug_option
@sentence_errors
def main(seeds: int, epochs: int, cache_dir: Path | None, output: Path) -> None:
    """Train a head on each kind of cache; test recall at all overlapping tokens, both directions."""
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_dir or Path(folder) / "cache"
        rows = {
            name: _measure(Path(folder) / name.replace(" ", ""), cache, seeds, epochs, changes)
            for name, changes in OPTIONS.items()
        }
    results = {
        "machine": f"{processor()}, {available_cores()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "torch": torch.__version__,
        "seeds": seeds,
        "epochs": epochs,
        "options": rows,
    }
    write_json(output, results)
    base = rows["fp16"]["recall_at_10"]
    for name, row in rows.items():
        cost = 100 * (np.mean(row["recall_at_10"]) - np.mean(base))
        click.echo(f"{name:<24}{row['bytes_per_item']:>8,.0f} bytes per item  R@10 {cost:+.1f} points")
    click.echo(f"{output}")


def _measure(folder: Path, cache: Path, seeds: int, epochs: int, changes: dict[str, Any]) -> dict[str, Any]:
    recall_1, recall_10 = [], []
    before = _size(cache)
    for seed in range(seeds):
        config = TrainConfig(
            str(STAGE1), str(folder), f"seed-{seed}", batch_size=512, epochs=epochs, learning_rate=2e-3, dim=192,
            dropout=0.1, feature_dropout=0.1, token_dropout=0.1, eval_every=epochs, seed=seed, cache_dir=str(cache),
            device="cpu", **changes,
        )  # fmt: skip
        scores = fit(config).scores
        assert scores is not None
        by_direction = [by_k["3"] for by_k in scores["recall"].values()]
        recall_1.append(float(np.mean([r["1"] for r in by_direction])))
        recall_10.append(float(np.mean([r["10"] for r in by_direction])))
    # Of both modalities together, over all items that were encoded.
    items = 54_097 + 7_338
    return {"recall_at_1": recall_1, "recall_at_10": recall_10, "bytes_per_item": (_size(cache) - before) / items}


def _size(cache: Path) -> int:
    return sum(path.stat().st_size for path in (cache / "features").rglob("*.npy")) if cache.is_dir() else 0


if __name__ == "__main__":
    main()
