"""`fluxtalk eval`: score any checkpoint of a run on any data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fluxtalk.console import allow_code_option, debug_option, option, sentence_errors
from fluxtalk.datasets import SPLIT_NAMES


@click.command(name="eval", context_settings={"max_content_width": 110})
@click.argument("run", type=click.Path(path_type=Path))
@option("--data", metavar="DATA", help="Data set with the run's modalities.  [default: the run's]")
@option("--split", default="test", show_default=True, type=click.Choice(SPLIT_NAMES), help="Split to score on.")
@option(
    "--checkpoint",
    default="best",
    show_default=True,
    metavar="best|last|PATH",
    help="Checkpoint of the run, or any head on the same encoders.",
)
@option(
    "--stage1_checkpoint", type=click.Path(path_type=Path), help="Stage 1 checkpoint, if it was moved since training."
)
@option("--cache_dir", metavar="DIR", help="Folder for renderings and features.  [default: the run's]")
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Also write the record as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@allow_code_option
@debug_option
@sentence_errors
def main(output: Path | None, as_json: bool, allow_code: bool, **asked: Any) -> None:
    """Score a checkpoint of RUN (OUTPUT_DIR/LOG_NAME of fluxtalk-train) by retrieval, for every number of tokens."""
    # Imported here, so that `--help` and bad options do not wait for torch.
    from fluxtalk.artifacts.files import write_json
    from fluxtalk.model.checkpoints.trained_run import trust_code_of_run
    from fluxtalk.train.results.evaluate import Evaluation, evaluate
    from fluxtalk.train.results.score import recall_lines

    if allow_code:
        trust_code_of_run(asked["run"], asked["stage1_checkpoint"])
    record = evaluate(Evaluation(**asked), say=lambda text: click.echo(text, err=True))
    if output is not None:
        write_json(output, record)
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    click.echo(f"{record['checkpoint']} (step {record['step']}) on the {record['split']} split of {record['data']}:")
    for line in recall_lines(record["recall"], {"nDCG@10": record["ndcg"], "MRR@10": record["mrr"]}):
        click.echo(line)
    if output is not None:
        click.echo(f"{output}")
