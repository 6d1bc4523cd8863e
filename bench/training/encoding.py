"""Throughput of building a feature cache, beside a bare loop over the same frozen encoder on the same real items.

The bare loop opens the encoder, decodes, collates and encodes, one after the other, and keeps nothing. Building also
decodes ahead, watches for items that fail, rounds to float16, writes, hashes and opens the cache. Both take turns,
with batches of the same items; ratios are formed within a turn.
"""

from __future__ import annotations

import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench.encoders.torchvision_operators import declare_torchvision_operators
from bench.machine import processor
from bench.markdown import markdown_table, replace_between
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.datasets import PairDataset, load_dataset
from fluxtalk.errors import DataError
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1
from fluxtalk.model.encoders import to_tensors
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.train.features.encode_batch import most_at_a_time
from fluxtalk.train.features.encoding import Encoding
from fluxtalk.train.features.options import CacheOptions
from fluxtalk.train.features.prebuild import prebuild
from fluxtalk.train.features.sources import cached_features

RESULTS = Path("bench/results/encoding.json")
GOAL = 0.9
"""Share of the bare loop's throughput that building a cache is to reach."""
_BEGIN, _END = "<!-- encoding: begin -->", "<!-- encoding: end -->"
_CPU = torch.device("cpu")
_QUERY = "?image=image&text=text&id=id&split=split"
_TIMES = {"image": 1, "text": 6}
"""Items of a modality, in multiples of the pictures: a text takes a tenth of a picture's time."""
_PACKAGES = ("torch", "timm", "transformers", "numpy")


@click.command()
@option("--table", required=True, type=click.Path(path_type=Path), help="Table that python -m bench.icons built.")
@option("--stage1", required=True, type=click.Path(path_type=Path), help="Encoders of `fluxtalk align` on that table.")
@option("--items", "count", default=512, show_default=True, type=click.IntRange(16), help="Pictures; texts are more.")
@option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns, after one to warm up.")
@option("--threads", default=available_cores(), show_default=True, type=click.IntRange(1), help="Of the encoders.")
@option("-o", "--output", default=RESULTS, show_default=True, type=click.Path(path_type=Path))
@option("--docs", type=click.Path(path_type=Path), help="Document to write the table into.")
@debug_option
@sentence_errors
def main(table: Path, stage1: Path, count: int, rounds: int, threads: int, output: Path, docs: Path | None) -> None:
    """Encode the same items by a bare loop and into a cache, in turns; three minutes on two cores."""
    declare_torchvision_operators()  # timm imports torchvision
    torch.set_num_threads(threads)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data = {m: f"{write_subset(table, Path(folder) / m, factor * count)}{_QUERY}" for m, factor in _TIMES.items()}
        modalities = measure(load_stage1(stage1), data, Path(folder), rounds)
        whole = _seconds(
            lambda: prebuild(
                stage1, data["image"], None, Path(folder) / "whole", CacheOptions(), _CPU, SingleProcess(), _say_nothing
            )
        )
    # What hardly grows with the items: opening the encoders and the table, estimating sizes, listing what is bad.
    fixed = whole - sum(statistics.median(one["build_s"]) / _TIMES[m] for m, one in modalities.items())
    content = {
        "machine": f"{processor()}, {available_cores()} cores",
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "goal": GOAL,
        "modalities": modalities,
        "command_s": round(whole, 2),
        "fixed_s": round(fixed, 2),
    }
    write_json(output, content)
    click.echo(encoding_table(content))
    click.echo(f"the whole command took {whole:.1f} s, {fixed:.1f} s of it not spent on items")
    if docs is not None:
        replace_between(docs, _BEGIN, _END, [encoding_table(content)])


def write_subset(table: Path, folder: Path, count: int) -> Path:
    """Write a table of some training pairs, spread over the whole, no picture and no text of which comes twice.

    Raises:
        DataError: there are fewer.
    """
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    images: set[str] = set()
    texts: set[str] = set()
    chosen = []
    for row in rows:
        if row["image"] not in images and row["text"] not in texts:
            images.add(row["image"])
            texts.add(row["text"])
            chosen.append(row)
    if len(chosen) < count:
        raise DataError(f"{table} has {len(chosen)} training pairs of different items; {count} are needed: --items.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pairs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "split", "image", "text"])
        writer.writeheader()
        for number in np.linspace(0, len(chosen) - 1, count).astype(int).tolist():
            row = chosen[number]
            image = str((table.parent / row["image"]).absolute())
            # Ids of a thing come more than once; here each pair is one of its own.
            writer.writerow({"id": number, "split": "train", "image": image, "text": row["text"]})
    return path


def measure(stage1: Stage1, data: Mapping[str, str], folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Time both ways for each modality.

    Args:
        data: modality to the data set whose items of it are encoded.

    Returns:
        modality to the items, ``bare_s`` and ``build_s`` of each turn, and the median ratio of bare to build.
    """
    found = {}
    for modality, name in data.items():
        dataset = load_dataset(name, folder / "cache", stage1.kinds)
        turns = [_turn(stage1, dataset, modality, folder / str(turn)) for turn in range(rounds + 1)][1:]
        bare, build = ([round(turn[way], 3) for turn in turns] for way in (0, 1))
        found[modality] = {
            "items": len(dataset.split("train").items[modality]),
            "bare_s": bare,
            "build_s": build,
            "ratio": round(statistics.median(b / c for b, c in zip(bare, build, strict=True)), 3),
        }
        click.echo(f"{modality}: {found[modality]['ratio']:.2f} of the bare loop's throughput")
    return found


def _turn(stage1: Stage1, dataset: PairDataset, modality: str, cache: Path) -> tuple[float, float]:
    """Seconds of the bare loop, and of building a cache; both open the encoder first."""

    def loop() -> int:
        encoding = Encoding.of(stage1, dataset.split("train"), modality, _CPU)
        return sum(len(features) for features in bare_loop(encoding))

    return _seconds(loop), _seconds(lambda: cached_features(stage1, dataset, "train", modality, cache, _CPU))


def _say_nothing(_: str) -> None:
    """Receive the lines of a build."""


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def bare_loop(encoding: Encoding, size: int | None = None) -> Iterator[torch.Tensor]:
    """Encode all items, those of like length together: features (B, L, dim) of one batch after the other.

    Args:
        size: items of a batch; None takes as many as building a cache does.
    """
    size = size or most_at_a_time(_CPU)
    prepared = [encoding.preprocess.prepare(value) for value in encoding.items.values]
    order = sorted(range(len(prepared)), key=lambda row: encoding.preprocess.length(prepared[row]))
    for part in np.array_split(order, -(-len(order) // size)):
        batch = encoding.preprocess.collate([prepared[row] for row in part.tolist()])
        with torch.no_grad():
            yield encoding.encoder(*to_tensors(batch, _CPU)).features_BLD


def encoding_table(content: dict[str, Any]) -> str:
    """Write items per second of both ways, and the ratio with its range over turns."""
    rows = []
    for modality, one in content["modalities"].items():
        bare, build = (one["items"] / statistics.median(one[way]) for way in ("bare_s", "build_s"))
        ratios = [b / c for b, c in zip(one["bare_s"], one["build_s"], strict=True)]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([modality, f"{bare:.0f}", f"{build:.0f}", f"**{one['ratio']:.2f}**", span])
    return markdown_table(["", "bare loop, items/s", "into the cache, items/s", "ratio", "over turns"], rows)


if __name__ == "__main__":
    main()
