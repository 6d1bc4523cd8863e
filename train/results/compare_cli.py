"""`fluxtalk compare`: runs side by side, as a table and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.errors import UsageError
from fluxtalk.train.records.history import read_history
from fluxtalk.train.results.compare import REGISTER_CONFIGURATION, compare
from fluxtalk.train.results.compare_plot import draw
from fluxtalk.train.results.compare_table import table_lines


@click.command(name="compare", context_settings={"max_content_width": 110})
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="PLOT", type=click.Path(path_type=Path), help="Also draw a .png, .svg or .pdf file."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@option(
    "--align_by",
    metavar="NAME,NAME",
    default=",".join(REGISTER_CONFIGURATION),
    show_default="the five of the register configuration",
    help="Options of fluxtalk-train; runs with equal values form a group.",
)
@debug_option
@sentence_errors
def main(runs: tuple[Path, ...], output: Path | None, as_json: bool, align_by: str) -> None:
    """Compare training runs: which options differ, what they cost, and recall by number of tokens.

    RUN is OUTPUT_DIR/LOG_NAME of fluxtalk-train, or a .jsonl file of another implementation in the schema that
    docs/runs.md describes.
    """
    names = [name.strip() for name in align_by.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"--align-by takes names of options, separated by commas, each once; got {align_by!r}.")
    comparison = compare([read_history(path) for path in runs], names)
    if output is not None:
        draw(comparison, output)
    if as_json:
        click.echo(json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False))
        return
    for line in table_lines(comparison):
        click.echo(line)
    if output is not None:
        click.echo(f"drawn to {output}")
