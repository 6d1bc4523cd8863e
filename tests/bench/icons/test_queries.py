"""The picture of queries shows held-out things, only those that may be shown, and only right ones as right."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.icons.build import build
from bench.icons.sheets.queries import draw_icon_queries, draw_names, held_out_pictures
from bench.icons.tables import Member, read_members
from fluxtalk.errors import DataError
from tests.bench.icons.conftest import TINY


def _member(name: str, style: str, split: str = "test", shown: bool = True) -> Member:
    return Member(name, split, f"{style}/{name}.png", name, style, shown)


def test_pictures_are_held_out_and_may_be_shown() -> None:
    kept = _member("bell", "mdi")
    assert held_out_pictures([_member("fox", "mdi", split="train"), _member("bell", "apple", shown=False), kept]) == [
        kept
    ]


def test_drawn_names_are_known_things_and_the_same_every_time() -> None:
    known = [_member(name, style) for name in ("a", "b", "c", "d") for style in ("x", "y", "z")]
    seldom = [_member("rare", "x"), _member("rare", "y")]
    drawn = draw_names([*seldom, *known], 3)
    assert set(drawn) < {"a", "b", "c", "d"}
    assert len(set(drawn)) == 3
    assert drawn == draw_names([*reversed(known), *seldom], 3)


def test_too_few_pictures_are_refused(packages: Path, tmp_path: Path) -> None:
    build(packages, TINY)
    count = len(held_out_pictures(read_members(packages)))
    with pytest.raises(DataError, match=f"has {count} test pictures that may be shown"):
        draw_icon_queries(packages, tmp_path / "bundle", [], tmp_path / "queries.png")
    assert not (tmp_path / "queries.png").exists()
