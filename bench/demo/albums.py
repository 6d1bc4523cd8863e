"""The demo's second data set: albums of several glyphs, where more tokens find more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bench.quality.retrieval.glyph_tasks import glyph_albums
from bench.quality.retrieval.job import Budget, job_config, run_job, score_search
from bench.quality.retrieval.variants import variant_named
from fluxtalk.artifacts.files import write_json

HEADS = ("mlp-8", "concat-own", "concat")
STEPS = 280
DIRECTION = "text->image"


def train_albums(cache_dir: Path, output: Path) -> None:
    """Train heads on albums of glyphs, score them on albums of unseen characters, and write recall by k.

    Args:
        cache_dir: cache of renderings and features.
        output: JSON file: head to its label and ``recall[kind of query][k][cut-off]``, from text to image.
    """
    task = glyph_albums(cache_dir)
    budget = dataclasses.replace(Budget(), steps=STEPS)
    found: dict[str, Any] = {}
    for name in HEADS:
        variant = variant_named(name)
        config = job_config(variant, 0, budget, {"token_dropout": 0.1}, task)
        head, took = run_job(variant, config, task)
        recall = {kind: score_search(head, variant, search)["recall"] for kind, search in task.test.items()}
        found[name] = {
            "label": variant.label,
            "bytes": {str(k): variant.bytes_per_item(k) for k in variant.counts},
            "recall": {kind: each[DIRECTION] for kind, each in recall.items()},
        }
        click.echo(f"  {variant.label}: {took['steps']} steps in {took['seconds']:.0f} s")
    write_json(output, found)


def print_albums(found: Mapping[str, Any]) -> None:
    """Print recall by head and k, for queries that name all and some of an album."""
    click.secho(
        "\n== recall on albums of 2 to 6 unseen characters: where items hold several things, k matters", bold=True
    )
    cells = "".join(f"{title:>12}" for title in ("bytes", "all R@1", "all R@10", "some R@1", "some R@10"))
    click.echo(f"\n  {'a query names':<54}{cells}")
    for head in found.values():
        for k, size in head["bytes"].items():
            label = f"{head['label']}, k = {k}" if len(head["bytes"]) > 1 else head["label"]
            recall = [100 * head["recall"][kind][k][cutoff] for kind in ("all", "some") for cutoff in ("1", "10")]
            click.echo(f"  {label:<54}{size:>12}" + "".join(f"{value:>10.1f} %" for value in recall))
