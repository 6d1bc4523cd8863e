"""`fluxtalk embed`: raw items in, an array of vectors out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from fluxtalk.artifacts import atomic_file
from fluxtalk.console import debug_option, option, progress, sentence_errors
from fluxtalk.errors import UsageError
from fluxtalk.parity import PRECISIONS
from fluxtalk.runtime.backends import BACKENDS
from fluxtalk.runtime.embedder import OUTPUT_KINDS, Embedder, load
from fluxtalk.runtime.inputs import gather_items

_CHUNK = 256


def serving_options(command: Any) -> Any:
    """The options of every command that loads a bundle."""
    for decorate in (
        click.option(
            "--backend", default="auto", show_default=True, type=click.Choice(BACKENDS), help="What runs the graphs."
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            help="One that the bundle holds.  [default: what the backend is best at]",
        ),
        click.option("--threads", type=click.IntRange(1), help="Of one operator.  [default: the available cores]"),
        option(
            "--batch_size", default=32, show_default=True, type=click.IntRange(1), help="Items per run of the graph."
        ),
    ):
        command = decorate(command)
    return command


def embed_with_progress(
    embedder: Embedder, modality: str, items: list[str], k: int | None, output: str, batch_size: int
) -> Any:
    """`Embedder.embed` in chunks, under a progress bar where there are several."""
    if len(items) <= _CHUNK:
        return embedder.embed(modality, items, k, output, batch_size)
    parts = []
    with progress(None, f"embedding {modality}", total=len(items), unit="item") as bar:
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK]
            parts.append(embedder.embed(modality, chunk, k, output, batch_size, first=start))
            bar.update(len(chunk))
    return np.concatenate(parts)


@click.command(name="embed")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("modality")
@click.argument("items", nargs=-1)
@click.option("--input", "list_file", type=click.Path(path_type=Path), help="A file with one more item per line.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .npy to write.")
@click.option("-k", "--tokens", "k", type=int, help="Register tokens to compute.  [default: all]")
@click.option(
    "--kind", default="pooled", show_default=True, type=click.Choice(OUTPUT_KINDS), help="What to write of each item."
)
@serving_options
@debug_option
@sentence_errors
def embed(
    bundle: Path,
    modality: str,
    items: tuple[str, ...],
    list_file: Path | None,
    output: Path,
    k: int | None,
    kind: str,
    backend: str,
    precision: str | None,
    threads: int | None,
    batch_size: int,
) -> None:
    """Embed ITEMS (texts, or paths of files or folders) of MODALITY with BUNDLE.

    fluxtalk embed BUNDLE text "black chess queen" -k 2 -o queen.npy
    """
    if output.suffix != ".npy":
        raise UsageError(f"Vectors are written as .npy; got --output {output}.")
    with load(bundle, backend, threads, precision=precision) as embedder:
        gathered = gather_items(embedder.input_kind(modality), items, list_file)
        vectors = embed_with_progress(embedder, modality, gathered, k, kind, batch_size)
    with atomic_file(output) as temporary, temporary.open("wb") as file:
        np.save(file, vectors)
    click.echo(f"{output}: {' x '.join(map(str, vectors.shape))} {vectors.dtype}")
