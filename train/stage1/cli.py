"""`fluxtalk stage1`: make the checkpoint of frozen encoders that stage 2 starts from."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from pathlib import Path

import click

from fluxtalk.artifacts.files import Identity, git_revision
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.errors import UsageError


@click.group(name="stage1")
def main() -> None:
    """Make a checkpoint of frozen encoders (stage 1)."""


@main.command()
@click.argument("dataset", type=click.Choice(["glyphs"]))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Checkpoint to write, a .pth file."
)
@option(
    "--image_steps", default=1500, show_default=True, type=click.IntRange(1), help="Steps of masked reconstruction."
)
@option(
    "--text_steps", default=1000, show_default=True, type=click.IntRange(1), help="Steps of masked language modeling."
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@option("--cache_dir", metavar="DIR", help="Folder for the renderings.  [default: ~/.cache/fluxtalk]")
@debug_option
@sentence_errors
def pretrain(dataset: str, output: Path, image_steps: int, text_steps: int, seed: int, cache_dir: str | None) -> None:
    """Train small encoders by masking, each on its own modality: no pair is seen."""
    from fluxtalk.datasets import default_cache_dir, load_dataset
    from fluxtalk.model.checkpoints.stage1 import Stage1, save_stage1
    from fluxtalk.train.stage1.pretrain import pretrain_modalities

    data = load_dataset(dataset, default_cache_dir(cache_dir))
    started = time.monotonic()
    modalities, losses = pretrain_modalities(data.split("train"), image_steps, text_steps, seed)
    figures = {
        "command": f"fluxtalk stage1 pretrain {dataset} --image-steps {image_steps} --text-steps {text_steps} "
        f"--seed {seed}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {_threads()} threads",
        "seconds": round(time.monotonic() - started, 1),
        **{name: asdict(value) for name, value in losses.items()},
    }
    save_stage1(Stage1(modalities, dataset, figures, Identity(git_revision=git_revision())), output)
    click.echo(f"{output}: {', '.join(modalities)}, {output.stat().st_size / 1e6:.1f} MB, {figures['seconds']:.0f} s")


@main.command()
@click.argument("specification", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Checkpoint to write, a .pth file."
)
@debug_option
@sentence_errors
def create(specification: Path, output: Path) -> None:
    """Wrap your own encoders, as SPECIFICATION (JSON) describes them.

    \b
    {"data": "pairs.csv",
     "modalities": {
       "image": {"encoder": "module:my_package.encoders:vit",
                 "options": {"pretrained": true},
                 "preprocess": {"kind": "image", "height": 224, "width": 224,
                                "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
       "text": {"encoder": "features:384"}}}
    """
    from fluxtalk.model.checkpoints.stage1 import save_stage1
    from fluxtalk.train.stage1.create import stage1_from_specification

    if output.suffix != ".pth":
        raise UsageError(f"A stage 1 checkpoint is a .pth file; got --output {output}.")
    stage1 = stage1_from_specification(specification)
    save_stage1(stage1, output)
    for name, part in stage1.modalities.items():
        click.echo(f"{name}: {part.spec.source}, features of dimension {part.spec.dim}")
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def _threads() -> int:
    import torch

    return torch.get_num_threads()
