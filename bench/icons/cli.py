"""Command line: ``python -m bench.icons build``, then ``albums``, ``scenes``, ``speech`` and ``sheet``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bench.icons.build import Plan, build
from fluxtalk.console import debug_option, option, sentence_errors

_DEFAULT = Plan()


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
