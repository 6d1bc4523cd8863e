"""Embed more items than fit in memory into one file; an interrupted call is continued by the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fluxtalk.artifacts.storage import StoredPath
from fluxtalk.console import progress
from fluxtalk.datasets.bad_items import (
    BadItem,
    BadItemPolicy,
    abbreviated,
    one_line,
    shown_item,
    write_report,
)
from fluxtalk.errors import InputError, UsageError
from fluxtalk.runtime.bulk.inputs import Item, UnusableRow, is_stored, with_content
from fluxtalk.runtime.bulk.output import check_output, write_output
from fluxtalk.runtime.bulk.parts import PartFiles
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.vectors import Vectors

STRICT = BadItemPolicy()
"""The default: any bad item is refused."""
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
class UndonePart:
    """Items that follow each other, and have no vectors yet."""

    number: int
    items: list[Item]
    first: int
    """Position of the first of them among all items."""


class EmbeddedPart(NamedTuple):
    """Vectors of an `UndonePart`."""

    bad: dict[int, str]
    """Position in the part of each item that cannot be used, to the reason."""
    vectors: Vectors
    """Those of the other items."""


UndoneParts = Iterator[UndonePart]
EmbedParts = Callable[[UndoneParts, PartFiles], Iterator[tuple[UndonePart, dict[int, str]]]]
"""Embeds parts as they are asked for and writes them, in any order; gives each, and its `EmbeddedPart.bad`."""


@dataclass(frozen=True)
class WrittenVectors:
    """Result of `embed_to_file`."""

    shape: tuple[int, ...]
    resumed: int
    """Number of items whose vectors were computed by an earlier call."""
    left_out: int = 0
    """Number of items that cannot be used and have no vector; `bad_items_report` lists them."""


@dataclass(frozen=True)
class EmbeddedParts:
    """All items of a command, embedded in parts on the disk."""

    parts: PartFiles
    count: int
    """Number of parts."""
    items: int
    """Number of vectors."""
    resumed: int
    """Number of items whose vectors were computed by an earlier call."""
    bad: tuple[BadItem, ...]
    """Items that cannot be used and are left out."""

    def ids(self) -> list[str]:
        """Ids of all vectors."""
        return [id_ for number in range(self.count) for id_ in self.parts.ids(number)]

    def vectors(self) -> Iterator[Vectors]:
        """Read the vectors, part by part."""
        return (vectors for _, vectors in self.parts.read(self.count))


def embed_to_file(
    embedder: Embedder,
    items: Iterable[Item],
    output: StoredPath,
    options: EmbedOptions,
    total: int | None = None,
    part_items: int = PART_ITEMS,
    policy: BadItemPolicy = STRICT,
    embed_parts: EmbedParts | None = None,
) -> WrittenVectors:
    """Embed items into ``.npy`` or Parquet, with progress and in bounded memory, as `embed_in_parts` does.

    Args:
        output: the file, whose suffix is its format; see `write_output`.

    Raises:
        UsageError: the output has no known suffix; or as for `embed_in_parts`.
        InputError, TokenCountError: as for `embed_in_parts`.
        BackendError: Parquet needs pyarrow.
    """
    check_output(output)
    embedded = embed_in_parts(embedder, items, output, options, total, part_items, policy, embed_parts)
    shape = write_output(output, embedded.parts.read(embedded.count), embedded.items)
    embedded.parts.remove()
    return WrittenVectors(shape, embedded.resumed, len(embedded.bad))


def embed_in_parts(
    embedder: Embedder,
    items: Iterable[Item],
    output: StoredPath,
    options: EmbedOptions,
    total: int | None = None,
    part_items: int = PART_ITEMS,
    policy: BadItemPolicy = STRICT,
    embed_parts: EmbedParts | None = None,
) -> EmbeddedParts:
    """Embed items into parts of ``part_items`` items, with progress and in bounded memory.

    They are kept in ``OUTPUT.parts`` until the caller removes them. A later call takes those with the same items at the
    same positions, of the same bundle in the same precision, and tries bad items again. It does not notice if a file's
    content changed while its path stayed.

    Args:
        items: iterated once.
        output: what will be made of the parts.
        total: number of items, if it is known.
        policy: what is done about items that cannot be used, once all others are embedded; `bad_items_report` lists
            them all.
        embed_parts: embeds the parts, elsewhere; None is here, one after the other.

    Raises:
        UsageError: there is no item, or as for `Embedder.embed`.
        InputError: the policy refuses the bad items; everything else is kept.
        TokenCountError: as for `Embedder.embed`; finished parts are kept.
    """
    selection = embedder.bundle.manifest.layout.select(options.k, options.output, options.dimensions)
    job = {
        "bundle": embedder.bundle.manifest.bundle_hash,
        "precision": embedder.precision,
        "modality": options.modality,
        "k": selection.k,
        "output": selection.output,
        "dtype": options.dtype,
        **{n: getattr(options, n) for n in ("role", "dimensions") if getattr(options, n) is not None},
    }
    parts = PartFiles(output, job)
    done = resumed = count = 0
    bad: list[BadItem] = []
    with _progress(options.modality, total) as update:

        def finish(part: UndonePart, wrong: Mapping[int, str]) -> None:
            bad.extend(_bad_item(part.items[i], part.first + i, options.modality, why) for i, why in wrong.items())
            update(len(part.items))

        def undone() -> UndoneParts:
            nonlocal done, resumed, count
            for number, chunk in enumerate(_chunks(items, part_items)):
                part = UndonePart(number, chunk, done)
                done += len(chunk)
                count += 1
                if _is_done(parts, number, chunk, embedder, options):
                    resumed += len(chunk)
                    finish(part, parts.bad(number))
                else:
                    yield part

        for part, wrong in (embed_parts or _one_by_one(embedder, options))(undone(), parts):
            finish(part, wrong)
    bad.sort(key=lambda item: item.row or 0)
    if not done:
        raise UsageError("There is nothing to embed: the input has no item.")
    report = bad_items_report(output)
    if bad:
        write_report(report, str(output), "", bad)
    else:
        report.unlink(missing_ok=True)
    refusal = policy.refusal(bad, {options.modality: done}, "The input", report)
    if refusal is None and len(bad) == done:
        refusal = f"Not one of {done} items can be used: {abbreviated(bad)}; {report} lists all."
    if refusal is not None:
        raise InputError(refusal)
    return EmbeddedParts(parts, count, done - len(bad), resumed, tuple(bad))


def bad_items_report(output: StoredPath) -> StoredPath:
    """Return the file beside an output that lists the items that cannot be used; it exists only if there are any."""
    return output.with_name(f"{output.name}.bad_items.jsonl")


def _bad_item(item: Item, position: int, modality: str, why: str) -> BadItem:
    if isinstance(item.value, UnusableRow):
        return BadItem(item.id, why, modality, "", position, item.id)
    shown = shown_item(item.value, item.id)
    return BadItem(shown, f"{modality} item {position}: {one_line(why)}", modality, "", position, item.id)


def _is_done(parts: PartFiles, number: int, chunk: Sequence[Item], embedder: Embedder, options: EmbedOptions) -> bool:
    """Return whether an earlier call left this part, with no bad item that can be used now."""
    if not parts.has(number, chunk):
        return False
    tried = [chunk[i] for i in parts.bad(number)]
    return len(_unusable(embedder, tried, options)) == len(tried)


def _unusable(embedder: Embedder, items: Sequence[Item], options: EmbedOptions) -> dict[int, str]:
    """Positions of the items that cannot be used, to the reason."""
    if any(is_stored(item, embedder.input_kind(options.modality)) for item in items):
        # One at a time: a file may be large.
        found = [_unusable(embedder, with_content([item]), options).get(0) for item in items]
        return {position: why for position, why in enumerate(found) if why is not None}
    rows = {i: item.value.reason for i, item in enumerate(items) if isinstance(item.value, UnusableRow)}
    others = [i for i in range(len(items)) if i not in rows]
    wrong = embedder.find_unusable(options.modality, [items[i].value for i in others], options.role)
    return rows | {others[position]: why for position, why in wrong.items()}


@contextmanager
def _progress(modality: str, total: int | None) -> Iterator[Callable[[int], Any]]:
    """Show a progress bar, if it would move more than once."""
    if total is not None and total <= PART_ITEMS:
        yield lambda _: None
        return
    with progress(None, f"embedding {modality}", total=total, unit="item") as bar:
        yield bar.update


def _one_by_one(embedder: Embedder, options: EmbedOptions) -> EmbedParts:
    """Embed parts here."""

    def embed(undone: UndoneParts, parts: PartFiles) -> Iterator[tuple[UndonePart, dict[int, str]]]:
        for part in undone:
            made = embed_part(embedder, part.items, part.first, options)
            parts.write(part.number, part.items, made.vectors, made.bad)
            yield part, made.bad

    return embed


def embed_part(embedder: Embedder, chunk: Sequence[Item], first: int, options: EmbedOptions) -> EmbeddedPart:
    """Embed a part's items, but for those that cannot be used.

    Files in object storage are held for as many items as a batch has.

    Args:
        first: position of the first item among all.

    Raises:
        FluxTalkError: as for `Embedder.embed`.
    """
    if not any(is_stored(item, embedder.input_kind(options.modality)) for item in chunk):
        return _embed_chunk(embedder, chunk, first, options)
    made: list[EmbeddedPart] = []
    bad: dict[int, str] = {}
    for start in range(0, len(chunk), options.batch_size):
        fetched = with_content(chunk[start : start + options.batch_size])
        made.append(_embed_chunk(embedder, fetched, first + start, options))
        bad |= {start + position: why for position, why in made[-1].bad.items()}
    return EmbeddedPart(bad, np.concatenate([one.vectors for one in made]))


def _embed_chunk(embedder: Embedder, chunk: Sequence[Item], first: int, options: EmbedOptions) -> EmbeddedPart:
    def embed(items: Sequence[Item]) -> Vectors:
        return embedder.embed(
            options.modality,
            [item.value for item in items],
            options.k,
            options.output,
            options.batch_size,
            first=first or None,
            dtype=options.dtype,
            role=options.role,
            dimensions=options.dimensions,
        )

    try:
        if not any(isinstance(item.value, UnusableRow) for item in chunk):
            return EmbeddedPart({}, embed(chunk))
    except InputError:
        if not _unusable(embedder, chunk, options):
            raise
    bad = _unusable(embedder, chunk, options)
    return EmbeddedPart(bad, embed([item for position, item in enumerate(chunk) if position not in bad]))


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
