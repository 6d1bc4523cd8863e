"""Ids of rows that share a cell, and columns of paths, by the modalities that are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxtalk.datasets import PairDataset, load_dataset
from fluxtalk.errors import DataError

USED = {"image": "image", "text": "text"}


def _table(folder: Path, header: str, rows: list[str], kinds: dict[str, str] | None) -> PairDataset:
    (folder / "pairs.csv").write_text("\n".join([header, *rows]) + "\n")
    return load_dataset(str(folder / "pairs.csv"), folder, kinds)


def _ids(data: PairDataset) -> int:
    return sum(len(split.ids) for split in data.splits.values())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixty pictures."""
    for i in range(60):
        Image.fromarray(np.full((2, 2), i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_a_column_that_no_encoder_reads_links_nothing(photos: Path) -> None:
    """Where each row comes from does not make rows one thing; the splits are those of the table without it."""
    plain = [f"{i}.png,text {i}" for i in range(60)]
    more = [f"{row},source {i % 3}" for i, row in enumerate(plain)]
    without = _table(photos, "image,text", plain, USED)
    data = _table(photos, "image,text,source", more, USED)
    assert _ids(data) == 60
    assert data.notes == ()
    assert {name: split.ids for name, split in data.splits.items()} == {
        name: split.ids for name, split in without.splits.items()
    }


def test_a_modality_that_is_used_links_as_before(photos: Path) -> None:
    """Two captions of each photograph; `source` is encoded here."""
    rows = [f"{i // 2}.png,text {i}" for i in range(60)]
    assert _ids(_table(photos, "image,text", rows, USED)) == 30
    sourced = [f"{row},source {i // 20}" for i, row in enumerate(rows)]
    assert _ids(_table(photos, "image,text,source", sourced, {**USED, "source": "text"})) == 3


@pytest.mark.parametrize(("repeats", "rows", "noted"), [(9, 60, False), (10, 60, True), (10, 334, False)])
def test_a_value_that_joins_many_rows_is_said(tmp_path: Path, repeats: int, rows: int, noted: bool) -> None:
    """Ten rows or more, and more than 3 %."""
    cells = [f"t{i},{'the same' if i < repeats else f'c{i}'}" for i in range(rows)]
    data = _table(tmp_path, "title,caption", cells, {"title": "text", "caption": "text"})
    assert _ids(data) == rows - repeats + 1
    assert bool(data.notes) is noted
    if noted:
        [note] = data.notes
        assert f"{repeats} of {rows} rows have the caption 'the same'" in note
        assert "id column" in note


def test_ids_of_the_table_are_not_linked_and_not_noted(tmp_path: Path) -> None:
    data = _table(tmp_path, "title,caption,id", [f"t{i},same,{i}" for i in range(40)], {"title": "text"})
    assert (_ids(data), data.notes) == (40, ())


def test_one_odd_suffix_leaves_a_column_of_images_one_of_paths(photos: Path) -> None:
    """What is missing is reported, and what is there is read from beside the table."""
    rows = [f"{i}.png,text {i}" for i in range(20)]
    with pytest.raises(DataError, match=r"1 of 21 files that do not exist: 4\.tga; paths are relative"):
        _table(photos, "image,text", [*rows, "4.tga,other"], USED)
    (photos / "4.png").rename(photos / "4.tga")
    data = _table(
        photos, "image,text", [row.replace("4.png", "4.tga") for row in rows if row[0] == "4"] + rows[5:], USED
    )
    values = [value for split in data.splits.values() for value in split.items["image"].values]
    assert photos / "4.tga" in values


def test_texts_that_end_like_files_are_texts_for_a_text_encoder(photos: Path) -> None:
    data = _table(photos, "image,text", [f"{i}.png,about {i}.jpg" for i in range(20)], USED)
    assert "about 3.jpg" in [value for split in data.splits.values() for value in split.items["text"].values]
