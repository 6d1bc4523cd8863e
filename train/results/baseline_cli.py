"""`fluxtalk baseline`: mean-pooling and a projection, trained on a run's features."""

from __future__ import annotations

from pathlib import Path

import click

from fluxtalk.console import allow_code_option, debug_option, option, sentence_errors
from fluxtalk.errors import UsageError
from fluxtalk.train.config import SWEEPS


@click.command(name="baseline")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--projection",
    default="linear",
    show_default=True,
    type=click.Choice(("linear", "mlp")),
    help="Projection of the mean of the features.",
)
@option(
    "--stage1_checkpoint", type=click.Path(path_type=Path), help="Stage 1 checkpoint, if it was moved since training."
)
@option("--cache_dir", metavar="DIR", help="Folder for renderings and features.  [default: the run's]")
@click.option(
    "--sweep",
    type=click.Choice(SWEEPS),
    help="Search for rate, epochs, dropouts and weight decay first, with the run's budget.  [default: as the run did]",
)
@allow_code_option
@debug_option
@sentence_errors
def main(
    run: Path,
    projection: str,
    stage1_checkpoint: Path | None,
    cache_dir: str | None,
    sweep: str | None,
    allow_code: bool,
) -> None:
    """Train mean-pool + projection on the features, batches and schedule of RUN.

    Writes RUN/baseline-PROJECTION/, and its test scores to RUN/baseline.json (baseline-mlp.json for the mlp).
    """
    from fluxtalk.artifacts.run import RunFolder, read_description
    from fluxtalk.model.checkpoints.trained_run import trust_code_of_run
    from fluxtalk.train.results.baseline import measure_baseline
    from fluxtalk.train.results.score import recall_lines

    description = read_description(run)
    if allow_code:
        trust_code_of_run(run, stage1_checkpoint)
    folder = RunFolder(run).baseline(projection)
    if folder.root.exists():
        raise UsageError(f"{folder.root} exists already; remove it to train this baseline again.")
    record = measure_baseline(run, projection, stage1_checkpoint, cache_dir, description.options["device"], sweep)
    for line in recall_lines(record["recall"]):
        click.echo(line)
    click.echo(f"{RunFolder(run).baseline_results(projection)}")
