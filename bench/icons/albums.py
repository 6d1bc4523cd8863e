"""Albums: items of two to six pictures of different things, and queries that name all, some or one of them.

``images`` lists an album's pictures, separated by semicolons, relative to the table: who trains on albums puts the
feature vectors of these pictures after each other. Two kinds of held-out albums: *combinations* that training does not
have, of things that it has; and *things* that training does not have.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.icons.sets import EMOJI_SETS
from bench.icons.tables import Member, Row, read_members, write_table
from bench.icons.things import SPLITS
from fluxtalk.errors import DataError

COLUMNS = ("id", "split", "images", "text", "query_kind", "things", "styles", "shown")
KINDS = ("all", "some", "one")
UNSEEN = ("combinations", "things")
_TRIES = 100
_THINGS_PER_ALBUM = 3
"""Things that validation and test need for each album: with fewer, hardly a thing is in one album alone."""
_EMOJI = frozenset(s.name for s in EMOJI_SETS)


@dataclass(frozen=True)
class AlbumPlan:
    """Numbers of albums, and the pictures to take."""

    unseen: str = "combinations"
    """Novelty of validation and test: ``combinations`` or ``things``."""
    train: int = 6000
    validation: int = 400
    """At most, and at most one album for three things that can be drawn; so is `test`."""
    test: int = 400
    smallest: int = 2
    largest: int = 6
    emoji_only: bool = True
    shown_only: bool = False
    """Only pictures that may be shown and committed."""
    seed: int = 0


@dataclass(frozen=True)
class Album:
    """Pictures of different things."""

    id: str
    split: str
    members: tuple[Member, ...]

    @property
    def things(self) -> frozenset[str]:
        """Ids of its things."""
        return frozenset(member.thing for member in self.members)


def compose(members: Sequence[Member], plan: AlbumPlan) -> list[Album]:
    """Draw albums, no two of the same things, each from seed, split and number alone.

    Raises:
        DataError: there are too few things for so many different albums.
    """
    pools = _pools(members, plan)
    source_of = {split: "train" if plan.unseen == "combinations" else split for split in SPLITS}
    counts = {
        "train": plan.train,
        "validation": min(plan.validation, len(pools[source_of["validation"]]) // _THINGS_PER_ALBUM),
        "test": min(plan.test, len(pools[source_of["test"]]) // _THINGS_PER_ALBUM),
    }
    seen: set[frozenset[str]] = set()
    return [
        _draw(f"{split}-{number}", split, pools[source_of[split]], plan, seen)
        for split in ("test", "validation", "train")
        for number in range(counts[split])
    ]


def _pools(members: Sequence[Member], plan: AlbumPlan) -> dict[str, dict[str, list[Member]]]:
    """Split to thing to its pictures, as far as the plan takes them."""
    pools: dict[str, dict[str, list[Member]]] = {split: defaultdict(list) for split in SPLITS}
    for member in members:
        if (member.style in _EMOJI or not plan.emoji_only) and (member.shown or not plan.shown_only):
            pools[member.split][member.thing].append(member)
    return pools


def _draw(id_: str, split: str, pool: Mapping[str, list[Member]], plan: AlbumPlan, seen: set[frozenset[str]]) -> Album:
    source = random.Random(f"{plan.seed}:{id_}")
    things = list(pool)
    for _ in range(_TRIES if len(things) >= plan.largest else 0):
        chosen = source.sample(things, source.randint(plan.smallest, plan.largest))
        if frozenset(chosen) not in seen:
            seen.add(frozenset(chosen))
            return Album(id_, split, tuple(source.choice(pool[thing]) for thing in chosen))
    raise DataError(
        f"The split {split} has {len(things)} things, too few for so many different albums of {plan.smallest} to "
        f"{plan.largest}; ask for fewer albums or take all sets."
    )


def join_names(names: Sequence[str]) -> str:
    """Spell a list in words: ``cat, dog and fox``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def queries(albums: Sequence[Album], seed: int) -> dict[str, dict[str, str]]:
    """Write the queries of `named_members`: album's id to kind to text."""
    return {
        album: {kind: join_names([member.name for member in named]) for kind, named in kinds.items()}
        for album, kinds in named_members(albums, seed).items()
    }


def named_members(albums: Sequence[Album], seed: int) -> dict[str, dict[str, list[Member]]]:
    """Choose what at most one query of each kind names, for every album.

    In validation and test, an album gets a query only if no other album of its split has all the things that the query
    names, so that each query has one answer. Albums of two things have no query that names some.

    Returns:
        Album's id to kind to the members that are named, in the order of the query.
    """
    having: dict[str, dict[str, set[str]]] = {split: defaultdict(set) for split in SPLITS}
    for album in albums:
        for thing in album.things:
            having[album.split][thing].add(album.id)
    return {album.id: _album_queries(album, having[album.split], seed) for album in albums}


def _album_queries(album: Album, having: Mapping[str, Collection[str]], seed: int) -> dict[str, list[Member]]:
    source = random.Random(f"{seed}:queries:{album.id}")
    size = len(album.members)
    written: dict[str, list[Member]] = {}
    for kind in KINDS:
        counts = {"all": [size], "some": list(range(2, size)), "one": [1]}[kind]
        for _ in range(_TRIES if counts else 0):
            named = source.sample(album.members, source.choice(counts))
            if album.split == "train" or _answers(named, having) == 1:
                written[kind] = named
                break
    return written


def _answers(named: Iterable[Member], having: Mapping[str, Collection[str]]) -> int:
    """Number of albums that have all of these things."""
    return len(set.intersection(*(set(having[member.thing]) for member in named)))


def album_rows(albums: Sequence[Album], seed: int) -> list[Row]:
    """One row per query."""
    texts = queries(albums, seed)
    return [
        {
            "id": album.id,
            "split": album.split,
            "images": ";".join(member.image for member in album.members),
            "text": text,
            "query_kind": kind,
            "things": ";".join(member.thing for member in album.members),
            "styles": ";".join(member.style for member in album.members),
            "shown": "yes" if all(member.shown for member in album.members) else "no",
        }
        for album in albums
        for kind, text in texts[album.id].items()
    ]


def write_albums(root: Path, plan: AlbumPlan) -> tuple[Path, dict[str, dict[str, int]]]:
    """Write ``albums-combinations.csv`` or ``albums-things.csv`` beside the data set's tables.

    Returns:
        The table; and split to kind to number of queries.

    Raises:
        DataError: there is no data set in ``root``, or it has too few things.
    """
    rows = album_rows(compose(read_members(root), plan), plan.seed)
    path = root / f"albums-{plan.unseen}.csv"
    write_table(path, rows, COLUMNS)
    return path, count_queries(rows)


def count_queries(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Count rows by split and kind of query."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for row in rows:
        counts[row["split"]][row["query_kind"]] += 1
    return {split: {kind: counted[kind] for kind in KINDS} for split, counted in counts.items()}
