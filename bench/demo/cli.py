"""The main job on real input, from nothing to search results: ``make demo``.

Every stage is a command that a user could type, and is printed before it runs. A stage whose outputs are there
already, made from the same inputs, is not run again.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from bench.demo import report as demo_report
from bench.demo.albums import HEADS, STEPS, train_albums
from bench.query_sheet import ANSWERS, Query, draw_queries
from fluxtalk.artifacts.files import hash_file, hash_json, write_json
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.console import debug_option, option, progress, sentence_errors
from fluxtalk.datasets import PairDataset, load_dataset
from fluxtalk.errors import FluxTalkError
from fluxtalk.runtime import Embedder, load
from fluxtalk.scoring.metrics import chance_at, first_hit_ranks, recall_at

COMMITTED_STAGE1 = Path(__file__).parents[1] / "stage1" / "glyphs.pth"
STAGE1_OPTIONS = ["--image_steps", "1500", "--text_steps", "1000"]
TRAIN_OPTIONS = [
    "--batch_size", "1024", "--epochs", "140", "--learning_rate", "2e-3", "--dim", "192", "--heads", "8",
    "--dropout", "0.1", "--feature_dropout", "0.1", "--token_dropout", "0.1", "--eval_every", "10",
]  # fmt: skip
QUERIES = (
    "black chess queen",
    "greek small letter omega with tonos",
    "rightwards double arrow with vertical stroke",
    "playing card nine of diamonds",
    "cyrillic capital letter dzhe",
    "smiling face with heart-shaped eyes",
)
DIRECTIONS = (("text", "image"), ("image", "text"))


@dataclass
class Demo:
    """Paths that the demo writes, and the seconds that each stage took."""

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def stage1(self) -> Path:
        return self.root / "stage1.pth"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def gallery(self) -> Path:
        return self.root / "gallery"

    @property
    def index(self) -> Path:
        return self.root / "gallery.index"

    def stage(self, name: str, inputs: Any, outputs: list[Path], make: Callable[[], None]) -> None:
        """Run a stage unless its outputs exist and were made from the same inputs."""
        memory = self.root / "stages.json"
        known = json.loads(memory.read_text()) if memory.is_file() else {}
        fingerprint = hash_json(inputs)
        entry = known.get(name, {})
        if entry.get("inputs") == fingerprint and all(path.exists() for path in outputs):
            self.seconds[name] = entry["seconds"]
            click.secho(f"\n== {name}: already there ({entry['seconds']:.0f} s in an earlier run)", bold=True)
            return
        click.secho(f"\n== {name}", bold=True)
        known.pop(name, None)
        write_json(memory, known)
        for path in outputs:
            _remove(path)
        started = time.monotonic()
        make()
        self.seconds[name] = round(time.monotonic() - started, 1)
        write_json(memory, {**known, name: {"inputs": fingerprint, "seconds": self.seconds[name]}})


@click.command()
@option("--output", required=True, type=click.Path(path_type=Path), help="Folder that everything is written to.")
@option(
    "--stage1",
    default="committed",
    show_default=True,
    type=click.Choice(("committed", "train")),
    help="Take the committed frozen encoders, or train short ones first.",
)
@debug_option
@sentence_errors
def main(output: Path, stage1: str) -> None:
    """Align glyph images with their names, export, serve and search."""
    started = time.monotonic()
    demo = Demo(output)
    output.mkdir(parents=True, exist_ok=True)
    data = _data(demo)
    _stage1(demo, stage1)
    options = ["--stage1_checkpoint", str(demo.stage1), "--cache_dir", str(demo.cache), *TRAIN_OPTIONS]
    inputs: list[Any] = [hash_file(demo.stage1), data.content_hash, TRAIN_OPTIONS]
    _train(demo, options, inputs)
    _baseline(demo, inputs)
    _export(demo, inputs)
    _gallery(demo, data, inputs)
    _evaluate(demo, data, inputs)
    _albums(demo, data)
    demo_report.print_report(demo.root, demo.seconds, time.monotonic() - started)


def _data(demo: Demo) -> PairDataset:
    click.secho("\n== data: images of Unicode characters in 16 type faces, and the characters' names", bold=True)
    started = time.monotonic()
    data = load_dataset("glyphs", demo.cache)
    demo.seconds["data"] = round(time.monotonic() - started, 1)
    for name, split in data.splits.items():
        click.echo(f"  {name:<10} {len(split.ids):>5} characters {len(split.items['image']):>6} images")
    return data


def _stage1(demo: Demo, source: str) -> None:
    if source == "train":
        command = [
            "fluxtalk",
            "stage1",
            "pretrain",
            "glyphs",
            "-o",
            str(demo.stage1),
            "--cache_dir",
            str(demo.cache),
            *STAGE1_OPTIONS,
        ]
        demo.stage("stage 1", ["train", STAGE1_OPTIONS], [demo.stage1], lambda: _command(command))
        return

    def copy() -> None:
        click.echo(f"  the committed frozen encoders: bench/stage1/{COMMITTED_STAGE1.name}")
        shutil.copy(COMMITTED_STAGE1, demo.stage1)

    demo.stage("stage 1", ["committed", hash_file(COMMITTED_STAGE1)], [demo.stage1], copy)


def _train(demo: Demo, options: list[str], inputs: list[Any]) -> None:
    command = ["fluxtalk-train", *options, "--output_dir", str(demo.root), "--log_name", demo.run.name]
    demo.stage("stage 2", inputs, [demo.run], lambda: _command(command))


def _baseline(demo: Demo, inputs: list[Any]) -> None:
    command = ["fluxtalk", "baseline", str(demo.run)]
    folder = RunFolder(demo.run)
    outputs = [folder.baseline_results(), folder.baseline("linear").root]
    demo.stage("baseline", inputs, outputs, lambda: _command(command))


def _export(demo: Demo, inputs: list[Any]) -> None:
    def make() -> None:
        precisions = ["--precision", "fp32", "--precision", "fp16"]
        _command(["fluxtalk-export", "onnx", str(demo.run), "-o", str(demo.bundle), *precisions, "--attention"])
        _command(["fluxtalk-export", "verify", str(demo.bundle)])

    demo.stage("export", inputs, [demo.bundle], make)


def _gallery(demo: Demo, data: PairDataset, inputs: list[Any]) -> None:
    """Write the held-out characters as picture files, as a user's own would be, and index them."""

    def make() -> None:
        split = data.split("test")
        images = split.items["image"]
        demo.gallery.mkdir()
        for row in np.flatnonzero(images.counted):
            Image.fromarray(images.values[int(row)]).save(demo.gallery / f"{split.ids[images.groups[row]]}.png")
        _command(["fluxtalk", "index", "build", str(demo.bundle), "image", str(demo.gallery), "-o", str(demo.index)])
        _command(["fluxtalk", "index", "search", str(demo.index), "text", QUERIES[0], "-n", "3"])

    demo.stage("index", inputs, [demo.gallery, demo.index], make)


def _evaluate(demo: Demo, data: PairDataset, inputs: list[Any]) -> None:
    """Score what was exported, through the runtime and from raw input, and draw the pictures."""

    def make() -> None:
        with load(demo.bundle) as embedder:
            click.echo(f"  {embedder.describe()}")
            scores = _retrieval(embedder, data)
            _queries(demo, embedder, data)
        run = json.loads(RunFolder(demo.run).results.read_text())
        baseline = json.loads(RunFolder(demo.run).baseline_results().read_text())["recall"]
        results = {
            **{
                name: run[name]
                for name in ("experiment_id", "implementation", "implementation_version", "git_revision")
            },
            **scores,
            "baseline": {direction: by_k["1"] for direction, by_k in baseline.items()},
            "recall_in_training": run["recall"],
            "seconds": demo.seconds,
        }
        write_json(demo.root / "results.json", results)
        demo_report.draw_recall(results, demo.root / "recall.png")

    outputs = [demo.root / name for name in ("results.json", "recall.png", "queries.png")]
    demo.stage("results", [*inputs, QUERIES], outputs, make)
    results = json.loads((demo.root / "results.json").read_text())
    write_json(demo.root / "results.json", {**results, "seconds": demo.seconds})


def _albums(demo: Demo, data: PairDataset) -> None:
    """Train and score heads on albums of several glyphs: the case in which k matters."""
    output = demo.root / demo_report.ALBUMS
    inputs = [hash_file(COMMITTED_STAGE1), data.content_hash, HEADS, STEPS]
    demo.stage("albums", inputs, [output], lambda: train_albums(demo.cache, output))


def _retrieval(embedder: Embedder, data: PairDataset) -> dict[str, Any]:
    """Recall by direction, k and cut-off of the test split, embedded from raw input by the runtime."""
    split = data.split("test")
    raw = {m: [i.values[int(row)] for row in np.flatnonzero(i.counted)] for m, i in split.items.items()}
    ids = {m: i.groups[i.counted] for m, i in split.items.items()}
    recall: dict[str, dict[str, Any]] = {f"{a}->{b}": {} for a, b in DIRECTIONS}
    unseen: dict[str, dict[str, Any]] = {f"{a}->{b}": {} for a, b in DIRECTIONS}
    for k in progress(range(1, embedder.num_tokens + 1), "embedding the test split", unit="k"):
        vectors = {m: embedder.embed(m, items, k) for m, items in raw.items()}
        for a, b in DIRECTIONS:
            ranks = first_hit_ranks(vectors[a], vectors[b], ids[a], ids[b])
            recall[f"{a}->{b}"][str(k)] = recall_at(ranks)
            unseen[f"{a}->{b}"][str(k)] = recall_at(ranks[~split.seen[ids[a]]])
    chance = {f"{a}->{b}": chance_at(ids[a], ids[b]) for a, b in DIRECTIONS}
    return {"recall": recall, "recall_unseen": unseen, "chance": chance}


def _queries(demo: Demo, embedder: Embedder, data: PairDataset) -> None:
    split = data.split("test")
    images, texts = split.items["image"], split.items["text"]
    first = np.flatnonzero(images.counted)
    image_vectors = embedder.embed("image", [images.values[int(row)] for row in first])
    text_vectors = embedder.embed("text", list(texts.values))
    found: list[Query] = []
    for query in QUERIES:
        order = np.argsort(-(image_vectors @ embedder.embed("text", [query])[0]))[:ANSWERS]
        found.append(
            Query(query, [255 - images.values[first[i]] for i in order], [texts.values[i] == query for i in order])
        )
        click.echo(f"  text  {query!r}: {', '.join(texts.values[i] for i in order[:3])}")
    for query in QUERIES[:3]:
        picture = images.values[first[list(texts.values).index(query)]]
        order = np.argsort(-(text_vectors @ embedder.embed("image", [picture])[0]))[:3]
        click.echo(f"  image of {query!r}: {', '.join(texts.values[i] for i in order)}")
    draw_queries(found, demo.root / "queries.png")


def _command(arguments: list[str]) -> None:
    """Print a command and run it; its progress goes straight to the terminal."""
    click.secho(f"$ {shlex.join(arguments)}", fg="cyan")
    # The command beside this interpreter, whatever PATH says.
    program = Path(sys.executable).parent / arguments[0]
    done = subprocess.run([str(program), *arguments[1:]])
    if done.returncode:
        raise FluxTalkError(
            f"The demo stopped because `{arguments[0]}` ended with status {done.returncode}; its message is above."
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
