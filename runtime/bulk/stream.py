"""Embed more items than fit in memory into one file; an interrupted call is continued by the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.console import progress
from fluxtalk.errors import UsageError
from fluxtalk.runtime.bulk.inputs import Item
from fluxtalk.runtime.bulk.output import check_output, write_output
from fluxtalk.runtime.bulk.parts import PartFiles
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.vectors import Vectors

PART_ITEMS = 256
"""Items of a part: an interruption loses no more, and the progress bar moves once for each."""


@dataclass(frozen=True)
class EmbedOptions:
    """Arguments of `Embedder.embed`."""

    modality: str
    k: int | None = None
    output: str = "pooled"
    dtype: str = "float32"
    batch_size: int = 32
    role: str | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class WrittenVectors:
    """Result of `embed_to_file`."""

    shape: tuple[int, ...]
    resumed: int
    """Number of items whose vectors were computed by an earlier call."""


def embed_to_file(
    embedder: Embedder,
    items: Iterable[Item],
    output: Path,
    options: EmbedOptions,
    total: int | None = None,
    part_items: int = PART_ITEMS,
) -> WrittenVectors:
    """Embed items into ``.npy`` or Parquet, with progress and in bounded memory.

    Parts of ``part_items`` items are kept in ``OUTPUT.parts`` until all are done. A later call takes those with the
    same items at the same positions, of the same bundle in the same precision. It does not notice if a file's content
    changed while its path stayed.

    Args:
        items: iterated once.
        output: the file, whose suffix is its format; see `write_output`.
        total: number of items, if it is known.

    Raises:
        UsageError: the output has no known suffix, there is no item, or as for `Embedder.embed`.
        InputError, TokenCountError: as for `Embedder.embed`; finished parts are kept.
        BackendError: Parquet needs pyarrow.
    """
    check_output(output)
    selection = embedder.bundle.manifest.layout.select(options.k, options.output, options.dimensions)
    job = {
        "bundle": embedder.bundle.manifest.bundle_hash,
        "precision": embedder.precision,
        "modality": options.modality,
        "k": selection.k,
        "output": options.output,
        "dtype": options.dtype,
        **{n: getattr(options, n) for n in ("role", "dimensions") if getattr(options, n) is not None},
    }
    parts = PartFiles(output, job)
    done = resumed = count = 0
    with _progress(options.modality, total) as update:
        for number, chunk in enumerate(_chunks(items, part_items)):
            if parts.has(number, chunk):
                resumed += len(chunk)
            else:
                parts.write(number, chunk, _embed(embedder, chunk, options, done))
            done += len(chunk)
            count += 1
            update(len(chunk))
    if not done:
        raise UsageError("There is nothing to embed: the input has no item.")
    shape = write_output(output, parts.read(count), done)
    parts.remove()
    return WrittenVectors(shape, resumed)


def embed_chunks(
    embedder: Embedder, items: Iterable[Item], options: EmbedOptions, total: int | None = None
) -> Iterator[Vectors]:
    """Embed items, a few hundred at a time, with progress.

    Args:
        total: number of items, if it is known.

    Raises:
        UsageError, InputError, TokenCountError: as for `Embedder.embed`.
    """
    done = 0
    with _progress(options.modality, total) as update:
        for chunk in _chunks(items, PART_ITEMS):
            yield _embed(embedder, chunk, options, done)
            done += len(chunk)
            update(len(chunk))


@contextmanager
def _progress(modality: str, total: int | None) -> Iterator[Callable[[int], Any]]:
    """Show a progress bar, if it would move more than once."""
    if total is not None and total <= PART_ITEMS:
        yield lambda _: None
        return
    with progress(None, f"embedding {modality}", total=total, unit="item") as bar:
        yield bar.update


def _embed(embedder: Embedder, chunk: list[Item], options: EmbedOptions, done: int) -> Vectors:
    return embedder.embed(
        options.modality,
        [item.value for item in chunk],
        options.k,
        options.output,
        options.batch_size,
        first=done or None,
        dtype=options.dtype,
        role=options.role,
        dimensions=options.dimensions,
    )


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
