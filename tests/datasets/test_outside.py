"""Files of a table that are outside its folder: read all the same, and said once."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fluxtalk.datasets import load_dataset
from fluxtalk.datasets.outside import outside_notes


def test_how_many_are_outside_is_said(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for folder in (home / "in", tmp_path / "out", tmp_path / "home-too"):
        folder.mkdir(parents=True)
    (home / "linked-out").symlink_to(tmp_path / "out")
    (tmp_path / "linked-in").symlink_to(home)
    table = home / "t.csv"
    inside = ["a.png", "in/b.png", "in/../c.png", str(tmp_path / "linked-in" / "d.png")]
    outside = ["../out/e.png", "linked-out/f.png", "../home-too/g.png", "/h.png"]
    assert outside_notes(table, [home / name for name in inside]) == ()
    (note,) = outside_notes(table, [home / name for name in inside + outside])
    assert note.startswith(f"4 of the 8 files that t.csv names are outside its folder {home.resolve()}")


@pytest.mark.parametrize("where", ["photos", "../elsewhere"])
def test_a_table_may_name_any_file(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "data"
    (folder / where).mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / where / f"{number}.png")
    rows = [f"{where}/{number}.png,item {number}" for number in range(3)]
    (folder / "t.csv").write_text("\n".join(["image,text", *rows]))
    data = load_dataset(str(folder / "t.csv"), tmp_path)
    notes = [note for note in data.notes if "outside" in note]
    assert len(notes) == (where != "photos")
