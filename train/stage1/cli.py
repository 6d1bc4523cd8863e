"""`fluxtalk stage1`: make the checkpoint of frozen encoders that stage 2 starts from."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from pathlib import Path

import click

from fluxtalk.artifacts.files import Identity, git_revision
from fluxtalk.console import allow_code_option, debug_option, option, sentence_errors
from fluxtalk.errors import UsageError


class _WithAlias(click.Group):
    """`create` is what `pack` was called before it took encoders by name."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, "pack" if cmd_name == "create" else cmd_name)


@click.group(name="stage1", cls=_WithAlias)
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
@click.argument("specification", required=False, type=click.Path(path_type=Path, dir_okay=False))
@option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="MODALITY=SOURCE",
    help="Pretrained encoder, repeatable: hf:NAME_OR_DIR, timm:NAME[@FILE], open_clip:ARCH[@FILE], st:NAME_OR_DIR, or "
    "features:DIM. Options follow as ?layer=-2&class-tokens=drop&pooled=append&image-size=224&max-length=64.",
)
@option("--data", metavar="DATA", help="Data set that training takes by default.")
@option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="MODALITY.NAME=TEXT",
    help='Text put before a text for a role, repeatable: text.query="query: ". Wins over the model\'s own.',
)
@option(
    "--default-prompt",
    "default_prompts",
    multiple=True,
    metavar="MODALITY=NAME",
    help="Prompt that is used where no role is named, in training too.  [default: the model's own, or none]",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Checkpoint to write, a .pth file."
)
@allow_code_option
@debug_option
@sentence_errors
def pack(
    specification: Path | None,
    encoders: tuple[str, ...],
    data: str | None,
    prompts: tuple[str, ...],
    default_prompts: tuple[str, ...],
    output: Path,
    allow_code: bool,
) -> None:
    """Put pretrained encoders into one checkpoint, each with the preprocessing that its own files say.

    They are named with --encoder, or described in SPECIFICATION (JSON), for what names cannot say:

    \b
    {"data": "pairs.csv",
     "modalities": {
       "image": {"encoder": "module:my_package.encoders:vit",
                 "options": {"pretrained": true},
                 "preprocess": {"kind": "image", "height": 224, "width": 224,
                                "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
       "text": {"encoder": "st:all-MiniLM-L6-v2"}}}
    """
    from fluxtalk.model.checkpoints.stage1 import save_stage1
    from fluxtalk.train.stage1.create import stage1_from_specification
    from fluxtalk.train.stage1.pack import pack_encoders, parse_encoders, parse_names, parse_prompts

    if output.suffix != ".pth":
        raise UsageError(f"A stage 1 checkpoint is a .pth file; got --output {output}.")
    if (specification is None) == (not encoders):
        raise UsageError("Name encoders either with --encoder or in a SPECIFICATION.")
    if specification is not None:
        if data or prompts or default_prompts:
            raise UsageError("With a SPECIFICATION, data and prompts stand in it; leave out --data and --prompt.")
        stage1 = stage1_from_specification(specification, allow_code)
    else:
        named = parse_encoders(encoders)
        stage1 = pack_encoders(named, data, parse_prompts(prompts), parse_names(default_prompts), allow_code)
    save_stage1(stage1, output)
    for name, part in stage1.modalities.items():
        click.echo(f"{name}: {part.spec.source}, features of dimension {part.spec.dim}")
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def _threads() -> int:
    import torch

    return torch.get_num_threads()
