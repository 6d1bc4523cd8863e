"""`fluxtalk baseline`: what mean-pooling and a linear map reach on a run's features."""

from __future__ import annotations

from pathlib import Path

import click

from fluxtalk.console import debug_option, option, sentence_errors


@click.command(name="baseline")
@click.argument("run", type=click.Path(path_type=Path))
@option(
    "--stage1_checkpoint", type=click.Path(path_type=Path), help="Where stage 1 lies, if it was moved since training."
)
@option("--cache_dir", metavar="DIR", help="For renderings and features.  [default: the run's]")
@debug_option
@sentence_errors
def main(run: Path, stage1_checkpoint: Path | None, cache_dir: str | None) -> None:
    """Train mean-pool + linear on the features, batches and schedule of RUN; write RUN/baseline.json."""
    from fluxtalk.artifacts import write_json
    from fluxtalk.model.run import read_run_config
    from fluxtalk.train.baseline import train_baseline
    from fluxtalk.train.distributed import process_world
    from fluxtalk.train.run import inputs_of_run, recall_lines

    content = read_run_config(run)
    with process_world(content["options"]["device"]) as (world, device):
        config, inputs = inputs_of_run(run, stage1_checkpoint, cache_dir, world, device)
        scores = train_baseline(config, inputs)
    identity = {
        name: content[name] for name in ("experiment_id", "implementation", "implementation_version", "git_revision")
    }
    write_json(run / "baseline.json", {**identity, "baseline": "mean-pool + linear", "split": "test", **scores})
    for line in recall_lines(scores["recall"]):
        click.echo(line)
    click.echo(f"{run / 'baseline.json'}")
