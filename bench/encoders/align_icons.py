"""``python -m bench.encoders.align_icons``: `fluxtalk align` on icons with real encoders, timed stage by stage.

The data come from ``python -m bench.icons build``. The result is the recall table of `fluxtalk align` beside the
baselines', and the seconds of each stage.
"""

from __future__ import annotations

import json
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch

from bench.encoders.real_sources import describe, real_source
from bench.machine import processor
from bench.markdown import markdown_table, replace_between
from fluxtalk.align.card import CUTOFFS, recall_rows
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.cli import main as fluxtalk
from fluxtalk.console import debug_option, option, sentence_errors

RESULTS = Path("bench/results/icons_align.json")
_PACKAGES = ("torch", "transformers", "timm", "onnxruntime", "numpy")
_BEGIN, _END = "<!-- align: begin -->", "<!-- align: end -->"


@click.command()
@click.argument("table", type=click.Path(path_type=Path, dir_okay=False))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the run and bundle.")
@option("--image", default="efficientnet-lite0", show_default=True, help="Image encoder with real weights.")
@option("--text", default="minilm", show_default=True, help="Text encoder with real weights.")
@option("--results", default=RESULTS, show_default=True, type=click.Path(path_type=Path), help="File of the result.")
@option("--docs", type=click.Path(path_type=Path, dir_okay=False), help="Document to write the table into.")
@debug_option
@sentence_errors
def main(table: Path, output: Path, image: str, text: str, results: Path, docs: Path | None) -> None:
    """Align TABLE, such as icons-4500.csv, from pictures and names to a bundle."""
    weights = output.parent / "weights"
    encoders = {"image": real_source(image, weights), "text": real_source(text, weights)}
    data = f"{table}?image=image&text=text&id=id&split=split"
    words = [word for name, source in encoders.items() for word in ("--encoder", f"{name}={source}")]
    started = time.monotonic()
    cache = ["--cache-dir", str(output.parent / "cache")]
    try:
        fluxtalk(["align", data, *words, "-o", str(output), *cache], standalone_mode=False)
    except SystemExit as ended:
        if ended.code:
            raise
    content = {
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "date": time.strftime("%Y-%m-%d"),
            "revision": git_revision(),
            "versions": {name: metadata.version(name) for name in _PACKAGES},
        },
        "data": table.name,
        "encoders": {"image": describe(image), "text": describe(text)},
        "seconds_in_all": round(time.monotonic() - started, 1),
        "stages": _seconds(output),
        "evaluation": json.loads((output / "evaluation.json").read_text()),
    }
    write_json(results, content)
    if docs is not None:
        replace_between(docs, _BEGIN, _END, [align_table(content)])
    click.echo(align_table(content))


def _seconds(output: Path) -> dict[str, float]:
    record = json.loads((output / "align.json").read_text())
    return {name: stage["seconds"] for name, stage in record["stages"].items()}


def align_table(content: dict[str, Any]) -> str:
    """Write recall on the test split as a table in Markdown."""
    rows = [
        [direction, name, *cells] for direction, name, cells in recall_rows(content["evaluation"]["splits"]["test"])
    ]
    return markdown_table(["direction", "", *(f"R@{cutoff}" for cutoff in CUTOFFS)], rows)


if __name__ == "__main__":
    main()
