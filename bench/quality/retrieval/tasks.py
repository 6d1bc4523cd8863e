"""Tasks of the proof: what is encoded, what is asked, and what is held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.icons.albums import KINDS, Album, named_members
from bench.icons.tables import Member
from fluxtalk.arrays import Integers
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.errors import UsageError
from fluxtalk.train.features.sources import FeatureSource

QUERY, ITEM = "text", "image"
WHOLE = "all"
"""Kind of query that names all of an item; the only kind where items hold one thing."""


@dataclass(frozen=True)
class Pairs:
    """Items and their queries to train on, encoded."""

    split: Split
    sources: Mapping[str, FeatureSource]
    """Modality to features, in the order of the split's items."""


@dataclass(frozen=True)
class Search:
    """Items to be found and the queries of one kind, encoded. Items that no query asks for are there too."""

    groups: Mapping[str, Integers]
    """Modality to the number of the thing that each item or query is about."""
    sources: Mapping[str, FeatureSource]
    """Modality to features, in the order of its groups."""
    counted: Mapping[str, Integers]
    """Modality to the rows of `sources` that take part."""


@dataclass(frozen=True)
class Task:
    """Something to retrieve."""

    name: str
    label: str
    train: Pairs
    validation: Mapping[str, Search]
    """Kind of query to search; the heads' checkpoints and options are chosen by them."""
    test: Mapping[str, Search]
    content_hash: str
    """Hash of all that the task's features and pairs depend on."""

    @property
    def dims(self) -> dict[str, int]:
        """Modality to feature dimension."""
        return {modality: source.dim for modality, source in self.train.sources.items()}


def search_of(split: Split, sources: Mapping[str, FeatureSource]) -> Search:
    """Search among the counted items of a split."""
    rows = {m: np.flatnonzero(items.counted) for m, items in split.items.items()}
    return Search({m: split.items[m].groups[chosen] for m, chosen in rows.items()}, sources, rows)


@dataclass(frozen=True)
class AlbumQueries:
    """Queries of the albums of one split."""

    albums: Sequence[Album]
    kinds: Mapping[str, Sequence[tuple[int, Sequence[Member]]]]
    """Kind to its queries: position of the album in `albums`, and the members that are named."""


def album_queries(albums: Sequence[Album], seed: int = 0) -> dict[str, AlbumQueries]:
    """Choose the queries of every split: see `bench.icons.albums.named_members`."""
    named = named_members(albums, seed)
    found: dict[str, AlbumQueries] = {}
    for split in dict.fromkeys(album.split for album in albums):
        chosen = [album for album in albums if album.split == split]
        kinds = {
            kind: [(row, named[album.id][kind]) for row, album in enumerate(chosen) if kind in named[album.id]]
            for kind in KINDS
        }
        found[split] = AlbumQueries(chosen, kinds)
    return found


def album_task(
    name: str,
    label: str,
    albums: Mapping[str, AlbumQueries],
    items_of: Callable[[Sequence[Album]], FeatureSource],
    queries_of: Callable[[Sequence[Sequence[Member]]], FeatureSource],
    content_hash: str,
) -> Task:
    """Make a task of albums: training has every kind of query, validation and test each kind by itself.

    Args:
        items_of: encodes albums.
        queries_of: encodes queries, given by the members that they name.
    """

    def encoded(split: str, kinds: Sequence[str]) -> tuple[dict[str, Integers], dict[str, FeatureSource]]:
        part = albums[split]
        asked = sorted((query for kind in kinds for query in part.kinds[kind]), key=lambda query: query[0])
        groups = {ITEM: np.arange(len(part.albums)), QUERY: np.array([row for row, _ in asked])}
        return groups, {ITEM: items_of(part.albums), QUERY: queries_of([named for _, named in asked])}

    def search(split: str, kind: str) -> Search:
        groups, sources = encoded(split, (kind,))
        return Search(groups, sources, {m: np.arange(len(rows)) for m, rows in groups.items()})

    groups, sources = encoded("train", KINDS)
    items = {m: Items(range(len(rows)), rows, np.ones(len(rows), dtype=bool)) for m, rows in groups.items()}
    ids = tuple(album.id for album in albums["train"].albums)
    train = Pairs(Split("train", ids, items, np.zeros(len(ids), dtype=bool)), sources)
    held_out = {split: {kind: search(split, kind) for kind in KINDS} for split in ("validation", "test")}
    return Task(name, label, train, held_out["validation"], held_out["test"], content_hash)


def task_named(name: str, known: Mapping[str, Callable[[], Task]]) -> Task:
    """Build the task of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in known:
        raise UsageError(
            f"A task whose data are there is one of {', '.join(known)}; got {name!r}. Tasks on icons need --icons and "
            "--icons-stage1."
        )
    return known[name]()
