"""CSV, JSON Lines and Parquet are one table, and the name of the data set says which column is what."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fluxtalk.datasets import load_dataset
from fluxtalk.errors import BackendError, DataError

ROWS: list[dict[str, str | int | None]] = [
    {"photo": "1.png", "caption": "a dog, on\na beach", "key": 7, "part": "train", "note": "x"},
    {"photo": "1.png", "caption": "a brown dog", "key": 7, "part": "train", "note": "x"},
    {"photo": "2.png", "caption": None, "key": 8, "part": "train", "note": "y"},
    {"photo": None, "caption": "café", "key": 8, "part": "train", "note": None},
    {"photo": "3.png", "caption": "two cups", "key": 9, "part": "test", "note": "z"},
]
MAPPING = "?image=photo&text=caption&id=key&split=part"


def _write(path: Path, rows: list[dict[str, str | int | None]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        # An absent key is a null.
        objects = [{k: v for k, v in row.items() if v is not None or i % 2} for i, row in enumerate(rows)]
        path.write_text("".join(json.dumps(row) + "\n\n" for row in objects))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_data_set(tmp_path: Path, suffix: str) -> None:
    for shade in (1, 2, 3):
        Image.fromarray(np.full((4, 4), shade, dtype=np.uint8)).save(tmp_path / f"{shade}.png")
    _write(tmp_path / f"pairs{suffix}", ROWS)
    name = f"{tmp_path}/pairs{suffix}{MAPPING}"
    data = load_dataset(name, tmp_path)
    assert data.name == name
    assert data.modalities == ("image", "text")
    train = data.split("train")
    assert train.ids == ("7", "8")
    assert train.items["image"].values == [tmp_path / "1.png", tmp_path / "2.png"]
    assert train.items["text"].values == ["a dog, on\na beach", "a brown dog", "café"]
    assert train.items["text"].groups.tolist() == [0, 0, 1]
    assert data.split("test").ids == ("9",)
    _write(tmp_path / "other.csv", ROWS)
    assert data.content_hash == load_dataset(f"{tmp_path}/other.csv{MAPPING}", tmp_path).content_hash


def test_only_named_columns_are_read(tmp_path: Path) -> None:
    # `id` is not named, so the rows that share a caption belong together; `Bad Name` could not be a modality.
    rows: list[dict[str, str | int | None]] = [
        {"id": "a", "Bad Name": "u", "the title": "x", "b.c": "one"},
        {"id": "b", "Bad Name": "u", "the title": "y", "b.c": "one"},
    ]
    for suffix in (".csv", ".jsonl", ".parquet"):
        _write(tmp_path / f"pairs{suffix}", rows)
        data = load_dataset(f"{tmp_path}/pairs{suffix}?title=the title&caption=b.c", tmp_path)
        (split,) = (split for split in data.splits.values() if split.ids)
        assert split.items["title"].values == ["x", "y"]
        assert split.items["caption"].values == ["one"]
        assert data.modalities == ("title", "caption")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 (not valid JSON"),
        ("[1]", "line 2 (not a JSON object"),
        ('{"title": 5, "caption": "a"}', "line 2 (title is int and not text"),
        ('{"title": "b", "caption": ["x", "y"]}', "line 2 (caption is list and not text"),
        ('{"title": "b", "caption": "c"}', ""),
        ('{"sound": "b"}', "line 2 (no modality"),
    ],
)
def test_malformed_json_lines_are_refused(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"title": "a", "caption": "one"}\n' + line)
    if not words:
        assert load_dataset(str(path), tmp_path).modalities == ("title", "caption")
        return
    with pytest.raises(DataError) as caught:
        load_dataset(f"{path}?title=title&caption=caption", tmp_path)
    assert words in str(caught.value)


def test_a_file_of_nothing_but_malformed_rows_says_so(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("title,caption\na,b\n")
    with pytest.raises(DataError, match=r"2 malformed of 2 rows: line 1 \(not valid JSON"):
        load_dataset(f"{tmp_path}/pairs.jsonl", tmp_path)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        _write(tmp_path / f"pairs{suffix}", ROWS)
        with pytest.raises(DataError, match=r"no column foto, which --data names; it has photo, caption, key"):
            load_dataset(f"{tmp_path}/pairs{suffix}?image=foto&text=caption", tmp_path)


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    _write(path, ROWS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"pairs\.parquet cannot be read .*Parquet"):
        load_dataset(str(path), tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "pairs.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BackendError, match=r"pip install 'fluxtalk\[data\]'"):
        load_dataset(f"{tmp_path}/pairs.parquet", tmp_path)
