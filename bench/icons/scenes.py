"""Scenes: albums as one picture, with the things at different places and in different sizes on white."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bench.icons.albums import COLUMNS as ALBUM_COLUMNS
from bench.icons.albums import Album, AlbumPlan, album_rows, compose, count_queries
from bench.icons.tables import read_members, write_table
from fluxtalk.console import progress

SIDE = 224
"""Pixels of a scene's side."""
_SMALLEST, _LARGEST = 40, 112
_SHRINK, _TRIES, _GAP = 0.9, 50, 2
COLUMNS = ("id", "split", "image", *ALBUM_COLUMNS[3:], "images", "places")
Place = tuple[int, int, int]
"""Left, top, and side, in pixels."""


def places(count: int, source: random.Random) -> list[Place]:
    """Draw places of squares that do not touch each other; sides shrink until all have room."""
    sides = [source.randint(_SMALLEST, _LARGEST) for _ in range(count)]
    while True:
        placed: list[Place] = []
        # The largest first, as it finds room hardest; given back in the order of the sides.
        for side in sorted(sides, reverse=True):
            found = next((place for _ in range(_TRIES) if _is_free(place := _anywhere(side, source), placed)), None)
            if found is None:
                break
            placed.append(found)
        if len(placed) == count:
            source.shuffle(placed)
            return placed
        sides = [max(_SMALLEST // 2, int(side * _SHRINK)) for side in sides]


def _anywhere(side: int, source: random.Random) -> Place:
    return source.randint(0, SIDE - side), source.randint(0, SIDE - side), side


def _is_free(place: Place, placed: Sequence[Place]) -> bool:
    left, top, side = place
    return all(
        left >= x + s + _GAP or x >= left + side + _GAP or top >= y + s + _GAP or y >= top + side + _GAP
        for x, y, s in placed
    )


def draw_scene(root: Path, album: Album, placed: Sequence[Place]) -> Image.Image:
    """Paste an album's pictures: ``SIDE`` x ``SIDE`` RGB pixels on white."""
    scene = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    for member, (left, top, side) in zip(album.members, placed, strict=True):
        with Image.open(root / member.image) as opened:
            icon = opened.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
        scene.paste(icon, (left, top), icon)
    return scene


def write_scenes(root: Path, plan: AlbumPlan) -> tuple[Path, dict[str, dict[str, int]]]:
    """Write scenes and their table, ``scenes-combinations.csv`` or ``scenes-things.csv``.

    The pictures of an earlier call are replaced.

    Returns:
        The table; and split to kind to number of queries.

    Raises:
        DataError: there is no data set in ``root``, or it has too few things.
    """
    albums = compose(read_members(root), plan)
    name = f"scenes-{plan.unseen}"
    table = root / f"{name}.csv"
    table.unlink(missing_ok=True)
    shutil.rmtree(root / name, ignore_errors=True)
    (root / name).mkdir()
    placed_of: dict[str, list[Place]] = {}
    for album in progress(albums, "scenes", unit="picture"):
        placed_of[album.id] = places(len(album.members), random.Random(f"{plan.seed}:places:{album.id}"))
        draw_scene(root, album, placed_of[album.id]).save(root / name / f"{album.id}.png")
    rows = [
        {
            **row,
            "image": f"{name}/{row['id']}.png",
            "places": ";".join(" ".join(map(str, place)) for place in placed_of[row["id"]]),
        }
        for row in album_rows(albums, plan.seed)
    ]
    write_table(table, rows, COLUMNS)
    return table, count_queries(rows)
