"""What serving costs on this machine: latency by k, and the library's overhead over a bare session.

Figures of one run are comparable with each other, not with another machine's: quote the ratios.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime

from fluxtalk.artifacts import write_json
from fluxtalk.bundle import TOKEN_INDEX
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.runtime import load
from fluxtalk.runtime.threads import available_cores

_TEXT = "black chess queen"


@click.command()
@option("--bundle", required=True, type=click.Path(path_type=Path), help="As `make demo` leaves it.")
@option("--runs", default=300, show_default=True, type=click.IntRange(10), help="Counted calls of each kind.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A .json to write.")
@debug_option
@sentence_errors
def main(bundle: Path, runs: int, output: Path | None) -> None:
    """Measure one item at a time, by k."""
    machine = f"{platform.machine()}, {available_cores()} cores, ONNX Runtime {onnxruntime.__version__}"
    rows: list[dict[str, Any]] = []
    click.echo(f"{machine}, {time.strftime('%Y-%m-%d')}; medians of {runs} calls, batch 1, milliseconds")
    click.echo(f"{'modality':<10}{'k':>3}{'embed':>9}{'session':>9}{'prepare':>9}{'overhead':>10}{'x k=1':>8}")
    with load(bundle) as embedder:
        for modality in embedder.modalities:
            rng = np.random.default_rng(0)
            item = _TEXT if embedder.input_kind(modality) == "text" else rng.integers(0, 256, (32, 32)).astype(np.uint8)
            prepared = embedder.prepare(modality, [item])
            first: float | None = None
            for k in range(1, embedder.num_tokens + 1):
                batch = embedder.bundle.preprocess(modality).collate(prepared)
                inputs = {**batch, TOKEN_INDEX: np.arange(k, dtype=np.int64)}
                session = embedder.session(modality)
                # In turn, so that a change of the machine's speed meets all three.
                embed, bare, prepare = _medians(
                    [
                        lambda m=modality, i=item, k=k: embedder.embed(m, [i], k),  # type: ignore[misc]
                        lambda s=session, a=inputs: s.run(a),  # type: ignore[misc]
                        lambda m=modality, i=item: embedder.prepare(m, [i]),  # type: ignore[misc]
                    ],
                    runs,
                )
                first = first or embed
                row = {"modality": modality, "k": k, "embed_ms": embed, "session_ms": bare, "prepare_ms": prepare}
                rows.append(row)
                click.echo(
                    f"{modality:<10}{k:>3}{embed:>9.3f}{bare:>9.3f}{prepare:>9.3f}"
                    f"{embed - bare - prepare:>10.3f}{embed / first:>8.2f}"
                )
    if output is not None:
        write_json(output, {"machine": machine, "date": time.strftime("%Y-%m-%d"), "runs": runs, "rows": rows})


def _medians(calls: list[Callable[[], Any]], runs: int) -> list[float]:
    """Median milliseconds of each call, the calls taking turns after a warm-up."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(runs + 20):
        for call, found in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if number >= 20:
                found.append((time.perf_counter() - started) * 1e3)
    return [round(statistics.median(found), 4) for found in times]


if __name__ == "__main__":
    main()
