"""Latency by k on this machine, and the library's overhead over a bare session.

Figures of one run are comparable with each other, not with another machine's: quote the ratios.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

from bench.latency.runtime_features import MODALITY, features_embedder
from bench.machine import processor
from bench.turns import milliseconds_in_turns
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.runtime import Embedder, load
from fluxtalk.runtime.backends.threads import available_cores

_TEXT = "black chess queen"
_SIZES = ((1, 384), (64, 384), (197, 384), (512, 768))
"""Length and dimension of features."""
MAX_OVERHEAD_US = 100
MAX_TEXT_RATIO = 1.3


@click.command()
@option("--bundle", required=True, type=click.Path(path_type=Path), help="A bundle, such as the demo's.")
@option("--runs", default=300, show_default=True, type=click.IntRange(10), help="Timed calls of each kind.")
@option("--threads", type=click.IntRange(1), help="Threads of one operator.  [default: the available cores]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A .json to write.")
@debug_option
@sentence_errors
def main(bundle: Path, runs: int, threads: int | None, output: Path | None) -> None:
    """Measure one item at a time: what the bundle embeds, by k; and features of several sizes, where the library is all
    there is besides the session."""
    machine = f"{processor()}, {available_cores()} cores, ONNX Runtime {onnxruntime.__version__}"
    facts = {
        "machine": machine,
        "threads": threads or available_cores(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "runs": runs,
        "aims": {"features_overhead_us": MAX_OVERHEAD_US, "text_ratio": MAX_TEXT_RATIO},
    }
    click.echo(f"{machine}, {facts['date']}; medians of {runs} calls, batch 1, milliseconds")
    titles = f"{'modality':<18}{'k':>3}{'embed':>9}{'session':>9}{'prepare':>9}"
    click.echo(f"{titles}{'over session':>14}{'x prepare + session':>21}")
    rows = list(measured(bundle, runs, threads))
    for row in rows:
        click.echo(
            f"{row['what']:<18}{row['k']:>3}{row['embed_ms']:>9.3f}{row['session_ms']:>9.3f}{row['prepare_ms']:>9.3f}"
            f"{row['overhead_us']:>11.0f} us{row['ratio']:>21.2f}"
        )
    if output is not None:
        write_json(output, {**facts, "rows": rows})


def measured(bundle: Path, runs: int, threads: int | None) -> Iterator[dict[str, Any]]:
    """One row for each modality and k of a bundle, and for each size of features."""
    rng = np.random.default_rng(0)
    with load(bundle, threads=threads) as embedder:
        for modality in embedder.modalities:
            item = _TEXT if embedder.input_kind(modality) == "text" else rng.integers(0, 256, (32, 32)).astype(np.uint8)
            for k in range(1, embedder.num_tokens + 1):
                yield _row(modality, embedder, modality, item, k, runs)
    for length, dim in _SIZES:
        with tempfile.TemporaryDirectory() as folder, features_embedder(Path(folder), dim, threads=threads) as embedder:
            item = rng.standard_normal((length, dim)).astype(np.float32)
            yield _row(f"features {length} x {dim}", embedder, MODALITY, item, embedder.num_tokens, runs)


def _row(what: str, embedder: Embedder, modality: str, item: Any, k: int, runs: int) -> dict[str, Any]:
    session = embedder.session(modality)
    batch = embedder.bundle.preprocess(modality).collate(embedder.prepare(modality, [item]))
    timed = milliseconds_in_turns(
        [
            lambda: embedder.embed(modality, [item], k),
            lambda: session.run(batch, k, ("embeddings",)),
            lambda: embedder.prepare(modality, [item]),
        ],
        runs,
    )
    embed, bare, prepare = (round(statistics.median(found), 4) for found in timed)
    return {
        "what": what,
        "k": k,
        "embed_ms": embed,
        "session_ms": bare,
        "prepare_ms": prepare,
        "overhead_us": round(1e3 * (embed - bare), 1),
        "ratio": round(embed / (prepare + bare), 3),
    }


if __name__ == "__main__":
    main()
