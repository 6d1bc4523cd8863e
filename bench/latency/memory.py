"""Memory that a backend keeps while batches of every size and length come: it has to level off.

python -m bench.latency.memory --bundle BUNDLE --backend openvino --seconds 120

Growth is what matters: the resident memory after the first tenth of the calls, and at the end.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.machine import processor
from fluxtalk.runtime import Embedder, load

_WORDS = ("red", "blue", "cat", "dog", "black", "queen", "small", "letter")
_BATCHES = (1, 1, 1, 2, 3, 5, 8, 13, 16, 32)
_LONGEST = 120
"""Words of the longest text, and vectors of the longest features; images have the size that the bundle takes."""


def resident_mb() -> float:
    """Read the resident memory of this process, in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def batches(embedder: Embedder, modality: str, seed: int) -> Callable[[], list[Any]]:
    """Return a function that draws the next batch."""
    draw = random.Random(seed)
    kind = embedder.input_kind(modality)
    if kind not in ("text", "image", "features"):
        raise click.UsageError(f"Batches are drawn of texts, images and features; {modality} is of kind {kind}.")
    dim = embedder.bundle.manifest.modalities[modality].preprocess.get("dim", 1)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def text() -> str:
        return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(1, _LONGEST)))

    def item() -> Any:
        if kind == "features":
            return np.ones((draw.randint(1, _LONGEST), dim), np.float32)
        return text() if kind == "text" else pixels

    return lambda: [item() for _ in range(draw.choice(_BATCHES))]


def measure(embedder: Embedder, modality: str, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Embed random batches for some seconds: memory at the start, after a tenth of the time, and at the end."""
    draw = batches(embedder, modality, seed)
    embedder.embed(modality, draw())
    first, calls = resident_mb(), 0
    curve: list[tuple[int, float]] = []
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        embedder.embed(modality, draw(), k=1 + calls % embedder.num_tokens)
        calls += 1
        if passed >= seconds * (len(curve) + 1) / 10:
            curve.append((calls, round(resident_mb(), 1)))
    return {
        "modality": modality,
        "seconds": seconds,
        "calls": calls,
        "first_mb": round(first, 1),
        "curve": curve,
        "last_mb": round(resident_mb(), 1),
    }


@click.command()
@click.option("--bundle", required=True, type=click.Path(path_type=Path))
@click.option("--backend", default="auto", show_default=True)
@click.option("--modality", default="text", show_default=True)
@click.option("--seconds", default=600.0, show_default=True, help="Duration.")
def main(bundle: Path, backend: str, modality: str, seconds: float) -> None:
    """Print the memory of one backend in JSON; each backend is measured in a process of its own."""
    with load(bundle, backend=backend, threads=1, spinning=False, modalities=[modality]) as embedder:
        found = {"backend": embedder.session(modality).describe(), **measure(embedder, modality, seconds)}
    date = time.strftime("%Y-%m-%d")
    click.echo(json.dumps({**found, "machine": processor(), "cores": os.cpu_count(), "date": date}))


if __name__ == "__main__":
    main()
