"""Things: drawings that are one by name, code point or picture, and the split that each belongs to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from bench.icons.drawings import Drawing
from bench.icons.names import name_key


@dataclass(frozen=True)
class Picture:
    """A drawing that was rendered."""

    drawing: Drawing
    path: str
    """Path relative to the data set."""
    content: str
    """SHA-256 of the file."""


@dataclass(frozen=True)
class Thing:
    """All pictures of one thing; none of them is of another thing, by name, code point or content."""

    id: str
    name: str
    pictures: tuple[Picture, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of its pictures, each once."""
        return tuple(dict.fromkeys(picture.path for picture in self.pictures))


SPLITS = ("train", "validation", "test")


def group(members: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Group what shares a key, directly or through others (union-find).

    Args:
        members: keys of each member.

    Returns:
        Indices of the members of each group, in the order of the first.
    """
    parent = list(range(len(members)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Hashable, int] = {}
    for i, keys in enumerate(members):
        for key in keys:
            a, b = root(first.setdefault(key, i)), root(i)
            parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for i in range(len(members)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def unite_copies(pictures: Sequence[Picture]) -> list[Picture]:
    """Give drawings of one style whose files are equal the path of the first: one picture with several names."""
    first: dict[tuple[str, str], str] = {}
    return [replace(p, path=first.setdefault((p.drawing.style, p.content), p.path)) for p in pictures]


def make_things(pictures: Sequence[Picture]) -> list[Thing]:
    """Group pictures into things, in the order of the pictures.

    A thing is called as its first picture; its id is that name with hyphens.
    """
    things: list[Thing] = []
    taken: set[str] = set()
    for indices in group([_keys(picture) for picture in pictures]):
        members = tuple(pictures[i] for i in indices)
        name = members[0].drawing.name
        plain = re.sub(r"[^\w#*+]+", "-", name.casefold()).strip("-") or "thing"
        id_, number = plain, 2
        while id_ in taken:
            id_, number = f"{plain}-{number}", number + 1
        taken.add(id_)
        things.append(Thing(id_, name, members))
    return things


def _keys(picture: Picture) -> list[tuple[str, str]]:
    keys = [("name", name_key(picture.drawing.name)), ("picture", picture.content)]
    return [*keys, ("code", picture.drawing.code_point)] if picture.drawing.code_point else keys


def order(things: Sequence[Thing], seed: int) -> list[Thing]:
    """Shuffle things by a hash of seed and id, whatever their order was."""
    return sorted(things, key=lambda thing: hashlib.sha256(f"{seed}:{thing.id}".encode()).digest())


def split_things(things: Sequence[Thing], test: int, validation: int, seed: int) -> dict[str, list[Thing]]:
    """Divide things: the first of the shuffled order to test, the next to validation, the others to train."""
    shuffled = order(things, seed)
    return {
        "train": shuffled[test + validation :],
        "validation": shuffled[test : test + validation],
        "test": shuffled[:test],
    }
