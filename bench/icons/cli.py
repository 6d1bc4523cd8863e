"""Command line: ``python -m bench.icons build``, then ``albums``, ``scenes``, ``speech``, ``sound`` or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bench.icons.albums import UNSEEN, AlbumPlan, write_albums
from bench.icons.build import Plan, build
from bench.icons.scenes import write_scenes
from bench.icons.sheets.contact import draw_sheet
from bench.icons.sheets.queries import draw_icon_queries
from bench.icons.sound.tables import SoundPlan
from bench.icons.speech import VOICES, SpeechPlan, write_speech
from bench.icons.things import SPLITS
from fluxtalk.console import Function, debug_option, option, sentence_errors

_DEFAULT, _SPEECH, _SOUND = Plan(), SpeechPlan(), SoundPlan()


@click.group()
def main() -> None:
    """Build a data set of icons and emoji with their names and tags, and what is made of it."""


@main.command("build")
@option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the data set.")
@option(
    "--source",
    default="auto",
    show_default=True,
    type=click.Choice(("auto", "npm", "pypi")),
    help="Registry that the drawings come from; auto is npm if it is installed.",
)
@option("--size", default=_DEFAULT.size, show_default=True, type=click.IntRange(16, 512), help="Pixels of a side.")
@option("--test", default=_DEFAULT.test, show_default=True, type=click.IntRange(1), help="Things of the test split.")
@option("--validation", default=_DEFAULT.validation, show_default=True, type=click.IntRange(1), help="The same.")
@option(
    "--train-things",
    "subsets",
    multiple=True,
    default=_DEFAULT.subsets,
    show_default=True,
    type=click.IntRange(1),
    help="Also write icons-N.csv, with N of the training things and all others. May be repeated.",
)
@option("--seed", default=_DEFAULT.seed, show_default=True, help="Seed of the split.")
@debug_option
@sentence_errors
def build_command(output: Path, **settings: Any) -> None:
    """Fetch, draw and split; what is up to date is not done again."""
    report(output, build(output, Plan(**settings)))


def report(root: Path, record: dict[str, Any]) -> None:
    """Print the counts of a build."""
    counts, failures = record["counts"], record["left_out"]["pictures"]
    click.echo(
        f"{root}: {counts['pictures']:,} pictures of {counts['things']:,} things "
        f"({counts['things_in_several_styles']:,} in several styles), {record['seconds']['all']:.0f} s"
    )
    for entry in record["sets"]:
        note = "" if entry["shown"] else "; built locally only, never to be shown or committed"
        pictures = ", ".join(f"{style} {count:,}" for style, count in entry["pictures"].items())
        click.echo(f"  {entry['set']:<12} {entry['version']:<8} {entry['license']}{note}: {pictures}")
    for name, number in counts["things_by_split"].items():
        click.echo(f"  {name:<11} {number:>6,} things {counts['pictures_by_split'][name]:>7,} pictures")
    for why, number in record["left_out"]["drawings"].items():
        click.echo(f"  left out: {number:,} {why}")
    for path, why in failures.items():
        click.echo(f"  left out: {path}: {why}")


@main.command("sheet")
@click.argument("root", type=click.Path(path_type=Path))
@option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .png to write.")
@option("--columns", default=14, show_default=True, type=click.IntRange(1), help="Things.")
@option("--side", default=48, show_default=True, type=click.IntRange(8), help="Pixels of a picture's side.")
@debug_option
@sentence_errors
def sheet_command(root: Path, output: Path, columns: int, side: int) -> None:
    """Draw some things of the data set in ROOT, in every style that may be shown."""
    count = draw_sheet(root, output, columns, side)
    click.echo(f"{output}: {count} pictures, {output.stat().st_size / 1000:.0f} kB")


@main.command("queries")
@click.argument("root", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@option(
    "--text",
    "texts",
    multiple=True,
    help="Query; repeat for several.  [default: the names of six things drawn at random]",
)
@option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .png to write.")
@debug_option
@sentence_errors
def queries_command(root: Path, bundle: Path, texts: tuple[str, ...], output: Path) -> None:
    """Draw what BUNDLE finds for texts among the test pictures in ROOT that may be shown."""
    count = draw_icon_queries(root, bundle, texts, output)
    click.echo(f"{output}: the nearest of {count:,} pictures")


def _album_options(command: Function) -> Function:
    default = AlbumPlan()
    for made in reversed(
        [
            click.argument("root", type=click.Path(path_type=Path)),
            option(
                "--unseen",
                default=default.unseen,
                show_default=True,
                type=click.Choice(UNSEEN),
                help="What validation and test have that training has not.",
            ),
            *(
                option(
                    f"--{split}",
                    default=getattr(default, split),
                    show_default=True,
                    type=click.IntRange(1),
                    help="Items of the split, at most.",
                )
                for split in SPLITS
            ),
            option("--emoji-only/--all-sets", default=True, show_default=True, help="Drawings to take."),
            option("--shown-only", is_flag=True, help="Take only pictures that may be shown and committed."),
            option("--seed", default=default.seed, show_default=True, help="Seed of all draws."),
        ]
    ):
        command = made(command)
    return command


@main.command("albums")
@_album_options
@debug_option
@sentence_errors
def albums_command(root: Path, **settings: Any) -> None:
    """Write albums of two to six pictures from the data set in ROOT."""
    _report_queries(*write_albums(root, AlbumPlan(**settings)))


@main.command("scenes")
@_album_options
@debug_option
@sentence_errors
def scenes_command(root: Path, **settings: Any) -> None:
    """Write scenes: albums as one picture each, from the data set in ROOT."""
    _report_queries(*write_scenes(root, AlbumPlan(**settings)))


def _report_queries(table: Path, counts: dict[str, dict[str, int]]) -> None:
    click.echo(f"{table}:")
    for split, by_kind in counts.items():
        kinds = ", ".join(f"{count:,} name {kind}" for kind, count in by_kind.items())
        click.echo(f"  {split:<11} {sum(by_kind.values()):>6,} queries: {kinds}")


@main.command("speech")
@click.argument("root", type=click.Path(path_type=Path))
@option("--train", default=_SPEECH.train, show_default=True, type=click.IntRange(1), help="Training things, at most.")
@option("--validation", default=_SPEECH.validation, show_default=True, type=click.IntRange(1), help="The same.")
@option("--test", default=_SPEECH.test, show_default=True, type=click.IntRange(1), help="The same.")
@option("--voices", default=_SPEECH.voices, show_default=True, type=click.IntRange(1, len(VOICES)), help="Of a thing.")
@option(
    "--missing",
    default=_SPEECH.missing,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of training things that lack one modality.",
)
@option("--seed", default=_SPEECH.seed, show_default=True, help="Seed of all draws.")
@debug_option
@sentence_errors
def speech_command(root: Path, **settings: Any) -> None:
    """Speak names of the data set in ROOT with espeak-ng, as a third modality."""
    table, rows = write_speech(root, SpeechPlan(**settings))
    things = len({row["id"] for row in rows})
    files = sum(bool(row["audio"]) for row in rows)
    click.echo(f"{table}: {things:,} things, {files:,} sound files")


@main.command("sound")
@click.argument("root", type=click.Path(path_type=Path))
@option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of encoders, run and bundle.")
@option("--results", default=None, type=click.Path(path_type=Path, dir_okay=False), help="File of results to write.")
@option("--train", default=_SOUND.train, show_default=True, type=click.IntRange(2), help="Training things, at most.")
@option("--validation", default=_SOUND.validation, show_default=True, type=click.IntRange(1), help="The same.")
@option("--test", default=_SOUND.test, show_default=True, type=click.IntRange(1), help="The same.")
@option("--steps", default=300, show_default=True, type=click.IntRange(1), help="Steps of the training.")
@option("--batch-size", default=128, show_default=True, type=click.IntRange(2), help="Pairs of a step.")
@debug_option
@sentence_errors
def sound_command(root: Path, output: Path, results: Path | None, steps: int, batch_size: int, **things: int) -> None:
    """Align pictures, names and spoken names of the data set in ROOT, and measure all six directions."""
    from bench.icons.sound.measure import Training, measure, sound_table, write_results

    found = measure(root, output, SoundPlan(**things), Training(steps, batch_size), click.echo)
    if results is not None:
        write_results(results, found)
    click.echo(sound_table(found))
