"""Tables of the data set, as `fluxtalk` reads them, and reading them back.

One row per picture and caption. ``id`` is the thing; ``caption`` says what ``text`` is (``name`` or ``tags``: the name
followed by tags); ``shown`` is ``yes`` if the license lets anyone show the picture.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.icons.names import with_tags
from bench.icons.things import SPLITS, Thing
from fluxtalk.artifacts.files import write_atomically
from fluxtalk.errors import DataError

COLUMNS = ("id", "split", "image", "text", "caption", "name", "style", "set", "license", "shown")
TABLE = "icons.csv"
Row = dict[str, str]


def make_rows(splits: Mapping[str, Sequence[Thing]]) -> list[Row]:
    """Rows of all splits in the order train, validation, test; things as given."""
    return [row for split in SPLITS for thing in splits[split] for row in _thing_rows(thing, split)]


def _thing_rows(thing: Thing, split: str) -> Iterable[Row]:
    for picture in thing.pictures:
        drawing = picture.drawing
        fixed = {
            "id": thing.id,
            "split": split,
            "image": picture.path,
            "name": drawing.name,
            "style": drawing.style,
            "set": drawing.set.name,
            "license": drawing.set.license,
            "shown": "yes" if drawing.set.shown else "no",
        }
        yield {**fixed, "text": drawing.name, "caption": "name"}
        if drawing.tags:
            yield {**fixed, "text": with_tags(drawing.name, drawing.tags), "caption": "tags"}


def write_table(path: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write a CSV file, whole or not at all; lines end with a line feed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


@dataclass(frozen=True)
class Member:
    """One picture of a data set that was built."""

    thing: str
    split: str
    image: str
    """Path relative to the data set."""
    name: str
    style: str
    shown: bool


def read_members(root: Path) -> list[Member]:
    """Read the pictures of a data set, each once, in the order of its table.

    Raises:
        DataError: there is no data set in the folder.
    """
    path = root / TABLE
    if not path.is_file():
        raise DataError(f"{path} does not exist; build the data set first: python -m bench.icons build -o {root}.")
    with path.open(encoding="utf-8", newline="") as file:
        rows: dict[str, Row] = {}
        for row in csv.DictReader(file):
            rows.setdefault(row["image"], row)
    return [
        Member(row["id"], row["split"], image, row["name"], row["style"], row["shown"] == "yes")
        for image, row in rows.items()
    ]
