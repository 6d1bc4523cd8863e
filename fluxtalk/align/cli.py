"""`fluxtalk align`: data and encoders in, a verified bundle with its model card out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from fluxtalk.console import GroupedCommand, allow_code_option, debug_option, option, sentence_errors
from fluxtalk.datasets.bad_items import BadItemPolicy, bad_item_options
from fluxtalk.scoring.parity import PRECISIONS
from fluxtalk.train.config import DEVICES, FEATURE_DTYPES, RECIPES
from fluxtalk.train.features.options import CacheOptions

_STORED = CacheOptions()
STAGE_NAMES = ("pack", "features", "train", "evaluate", "export", "verify", "card")
"""Names of `fluxtalk.align.plan.STAGES`, here so that help does not wait for torch."""

_encoders, _training, _stored, _running = (
    partial(option, group=title) for title in ("Encoders", "Training", "Features", "Runtime")
)


@click.command(name="align", cls=GroupedCommand, context_settings={"max_content_width": 110})
@click.argument("data")
@_encoders(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="MODALITY=SOURCE",
    help="Pretrained encoder, once for each modality: hf:NAME_OR_DIR, timm:NAME[@FILE], open_clip:ARCH[@FILE], "
    "st:NAME_OR_DIR or features:DIM, with options as `fluxtalk stage1 pack` takes them.",
)
@_encoders(
    "--stage1-checkpoint",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Encoders that `fluxtalk stage1 pack` has packed, instead of --encoder.",
)
@_encoders(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="MODALITY.NAME=TEXT",
    help='Text put before a text for a role, repeatable: text.query="query: ".  [default: the model\'s own]',
)
@_encoders(
    "--default-prompt",
    "default_prompts",
    multiple=True,
    metavar="MODALITY=NAME",
    help="Prompt that is used where no role is named, in training too.  [default: the model's own, or none]",
)
@partial(allow_code_option, group="Encoders")
@_training("--recipe", default="recommended", show_default=True, type=click.Choice(tuple(RECIPES)), help="Options.")
@_training("--epochs", type=int, help="Passes over the training ids.  [default: by the data's size]")
@_training("--steps", type=int, help="Steps, rounded up to whole epochs, instead of --epochs.")
@_training("--batch-size", type=int, help="Pairs of a step.  [default: by the data's size]")
@_training("--seed", default=0, show_default=True, help="Random seed.")
@_stored(
    "--feature-dtype",
    default=_STORED.dtype,
    show_default=True,
    type=click.Choice(FEATURE_DTYPES),
    help="Number format of cached features; int8 is half the size.",
)
@_stored(
    "--feature-pca",
    default=_STORED.pca,
    show_default=True,
    type=int,
    help="Principal components that features are reduced to; 0 is off.",
)
@_stored(
    "--feature-pool",
    default=_STORED.pool,
    show_default=True,
    type=int,
    help="Consecutive feature vectors averaged into one; 1 is off.",
)
@bad_item_options("Features")
@_stored("--cache-dir", metavar="DIR", help="Folder for renderings and features.  [default: ~/.cache/fluxtalk]")
@_running(
    "-o",
    "--output",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of everything that is made; new, empty, or of an earlier `fluxtalk align`.",
)
@_running(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    default=("fp32",),
    show_default=True,
    help="Precision of the bundle's graphs; repeatable.",
)
@_running(
    "--device", default="auto", show_default=True, type=click.Choice(DEVICES), help="Device to encode and train on."
)
@_running(
    "--until", default=STAGE_NAMES[-1], show_default=True, type=click.Choice(STAGE_NAMES), help="Last stage to run."
)
@debug_option
@sentence_errors
def main(
    encoders: Sequence[str],
    prompts: Sequence[str],
    default_prompts: Sequence[str],
    until: str,
    feature_dtype: str,
    feature_pca: int,
    feature_pool: int,
    on_bad_item: str,
    bad_items_limit: float,
    **asked: Any,
) -> None:
    """Align the encoders of two modalities or more on DATA, from pairs to a bundle that is ready to serve.

    fluxtalk align pairs.csv --encoder image=timm:NAME --encoder text=st:NAME -o mine

    The same command again does only what is missing or out of date, and goes on where it was interrupted.
    """
    # Imported here, so that `--help` and misspelled options do not wait for torch.
    from fluxtalk.align.request import AlignRequest
    from fluxtalk.train.stage1.pack import parse_encoders, parse_names, parse_prompts

    request = AlignRequest(
        encoders=parse_encoders(encoders),
        prompts=parse_prompts(prompts),
        default_prompts=parse_names(default_prompts),
        features=CacheOptions(feature_dtype, feature_pca, feature_pool),
        bad_items=BadItemPolicy(on_bad_item, bad_items_limit),
        **asked,
    )
    _align(request, until)


def _align(request: Any, until: str) -> None:
    from fluxtalk.align.plan import StageFailed, align
    from fluxtalk.align.work import Work

    work = Work(request, click.echo)
    try:
        result = align(work, until)
    except StageFailed as failed:
        until_here = "" if until == STAGE_NAMES[-1] else f" --until {until}"
        _leave(failed, request.command() + until_here)
    for line in _summary(work, until, result.refused):
        click.echo(line)
    sys.exit(result.exit_code)


def _leave(failed: Any, command: str) -> None:
    """End with what to do next; the error itself, if there is one, is told by `sentence_errors`.

    Raises:
        BaseException: the cause of the failure, unless it was an interruption.
    """
    cause = failed.__cause__
    interrupted = isinstance(cause, KeyboardInterrupt | SystemExit)
    what = "was interrupted" if interrupted else "did not end"
    click.echo(f"{failed.stage} {what}; what is done is kept, and this goes on from there: {command}", err=True)
    if isinstance(cause, SystemExit):
        sys.exit(cause.code)
    if interrupted:
        sys.exit(130)
    raise cause


def _summary(work: Any, until: str, refused: Sequence[str]) -> list[str]:
    """Tell the recall table, and the commands that index, search and serve."""
    from fluxtalk.artifacts.bundle import read_bundle
    from fluxtalk.runtime.model_card import commands

    lines = []
    if until in STAGE_NAMES[STAGE_NAMES.index("evaluate") :]:
        lines += ["", *_recall(work.folder.evaluation)]
    if until in STAGE_NAMES[STAGE_NAMES.index("export") :]:
        manifest = read_bundle(work.folder.bundle, check_hashes=False).manifest
        lines += ["", *commands(work.folder.bundle, work.request.data, manifest, work.compares_tokens)]
    if until == STAGE_NAMES[-1]:
        lines.append(f"{work.folder.card} tells what it is")
    if refused:
        lines.append(f"refused by the quality gate, and not in the bundle: {', '.join(refused)}")
    return lines


def _recall(evaluation: Path) -> list[str]:
    from fluxtalk.align.card import CUTOFFS, recall_rows
    from fluxtalk.artifacts.json_files import read_object

    splits = read_object(evaluation)["splits"]
    split, scores = list(splits.items())[-1]
    lines = [f"recall on the {split} split ({scores['ids']:,} ids), percent; k is the number of tokens:"]
    lines.append(f"  {'':<38}" + "".join(f"{f'R@{cutoff}':>8}" for cutoff in CUTOFFS))
    for direction, name, cells in recall_rows(scores):
        lines.append(f"  {direction:<18}{name:<20}" + "".join(f"{cell:>8}" for cell in cells))
    return lines
