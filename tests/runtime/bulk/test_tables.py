"""One reader of tables: `fluxtalk-train --data` and `fluxtalk embed` or `index build` read, and refuse, the same."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fluxtalk.datasets import Items, load_dataset
from fluxtalk.errors import DataError, InputError
from fluxtalk.runtime.bulk.inputs import TableColumn, open_input
from tests.conftest import Made
from tests.runtime.test_serving import one_sentence, run

LONG = "a long story " * 16_000
ROWS = [("one", "a"), (LONG, "b"), ("two", LONG)]


def _write(path: Path) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "title"), *ROWS])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text, "title": title}) + "\n" for text, title in ROWS))
    else:
        columns = dict(zip(("text", "title"), zip(*ROWS, strict=True), strict=True))
        pyarrow.parquet.write_table(pyarrow.table({name: list(cells) for name, cells in columns.items()}), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_cell_of_200_kb_is_read(tmp_path: Path, suffix: str) -> None:
    path = _write(tmp_path / f"rows{suffix}")
    data = load_dataset(str(path), tmp_path)
    trained = {(text, title) for split in data.splits.values() for text, title in _pairs(split.items)}
    assert trained == set(ROWS)
    opened = open_input("text", "text", [], path)
    assert isinstance(opened, TableColumn)
    assert opened.count() == 3
    assert [item.value for item in opened] == [text for text, _ in ROWS]


def _pairs(items: Mapping[str, Items]) -> list[tuple[str, str]]:
    return list(zip(items["text"].values, items["title"].values, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "number", "problem"),
    [
        ("a.csv", b"text,title\none,a\n\ntwo,b,more\n", 4, "3 cells for 2 columns"),
        ("a.csv", b'text,title\none,a\n"two,b\nthree,c\n', 4, "not valid CSV: unexpected end of data"),
        ("a.csv", b'text,title\none,a\n"two"x,b\nthree,c\n', 3, "not valid CSV"),
        ("a.jsonl", b'{"text": "one", "title": "a"}\n\n{"text": \n', 3, "not valid JSON"),
        ("a.jsonl", b'{"text": "one", "title": "a"}\n["two", "b"]\n', 2, "not a JSON object"),
        (
            "a.jsonl",
            b'{"text": "\\ud83d\\ude00", "title": "a"}\n{"text": "half \\ud83d", "title": "b"}\n',
            2,
            "text holds a lone surrogate",
        ),
    ],
)
def test_a_bad_line_is_named(made: Made, tmp_path: Path, name: str, content: bytes, number: int, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as trained:
        load_dataset(str(path), tmp_path)
    with pytest.raises(InputError) as embedded:
        list(open_input("text", "text", [], path))
    for sentence in (str(trained.value), str(embedded.value)):
        assert problem in sentence
        assert f"line {number}" in sentence.lower()
    for command in (("embed",), ("index", "build")):
        output = tmp_path / "made"
        done = run(*command, made.bundle.folder, "text", "--input", path, "-o", output.with_suffix(".npy"))
        one_sentence(done, 1, problem, str(number))
    assert list(tmp_path.iterdir()) == [path]


def test_a_surrogate_in_a_column_that_is_not_read_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "title": "a", "note": "\\udc00"}\n')
    assert [item.value for item in open_input("text", "text", [], path)] == ["one"]
    data = load_dataset(f"{path}?text=text&title=title", tmp_path)
    assert sum(len(split.ids) for split in data.splits.values()) == 1


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_no_named_column_is_there(tmp_path: Path, suffix: str) -> None:
    path = _write(tmp_path / f"rows{suffix}")
    with pytest.raises(DataError, match="no column bar, foo, which --data names; it has text, title"):
        load_dataset(f"{path}?image=foo&text=bar", tmp_path)


def test_a_list_from_a_pipe_is_read_once_and_asked_twice(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        os.write(write, "one\n\n two é\r\n".encode())
        os.close(write)
        opened = open_input("text", "text", (), Path(f"/dev/fd/{read}"))
    finally:
        os.close(read)
    assert opened.count() == 2
    assert [item.value for item in opened] == [item.value for item in opened] == ["one", "two é"]
    read, write = os.pipe()
    try:
        os.write(write, b"\xff\n")
        os.close(write)
        with pytest.raises(InputError, match="give a UTF-8 file with one item per line"):
            open_input("text", "text", (), Path(f"/dev/fd/{read}"))
    finally:
        os.close(read)
    with pytest.raises(InputError, match="cannot be read"):
        list(open_input("text", "text", (), tmp_path / "gone"))
