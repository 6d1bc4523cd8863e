"""`embed` and `index build` with files that cannot be used: listed together, or left out; the others are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from PIL import Image

from fluxtalk.artifacts.index import read_index
from fluxtalk.datasets.bad_items import read_report
from fluxtalk.preprocess import FILE_SUFFIXES
from fluxtalk.runtime import load
from fluxtalk.runtime.bulk.cli import embed
from fluxtalk.runtime.bulk.inputs import open_input
from fluxtalk.runtime.index.cli import main as index
from tests.conftest import Made


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures, one of them in a sub-folder, two broken ones, and a file of another kind."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "c.png", "d.webp", "more/e.png")):
        Image.new("RGB", (9, 9), (40 * number, 0, 0)).save(folder / name)
    (folder / "broken.png").write_bytes(b"<html>404</html>")
    (folder / "empty.png").touch()
    (folder / "notes.md").write_text("not a picture")
    return folder


def test_all_bad_files_are_listed_and_the_others_vectors_are_kept(made: Made, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "v.parquet"
    command = [str(made.bundle.folder), "image", str(photos), "-o", str(output), "--backend", "ort-cpu"]
    refused = CliRunner().invoke(embed, command)
    assert refused.exit_code == 1
    assert "The input has 2 of 7 items that cannot be used" in refused.stderr
    assert "broken.png" in refused.stderr
    assert "empty.png" in refused.stderr
    assert "notes.md" in refused.stderr  # passed over, with a word
    assert not output.exists()
    report = tmp_path / "v.parquet.bad_items.jsonl"
    assert [item.row for item in read_report(report)[1]] == [2, 5]
    limited = CliRunner().invoke(embed, [*command, "--on-bad-item", "skip"])
    assert "28.6% of image is more than the 1.0% of --bad-items-limit" in limited.stderr
    done = CliRunner().invoke(embed, [*command, "--on-bad-item", "skip", "--bad-items-limit", "0.5"])
    assert done.exit_code == 0, done.output
    assert "5 x 48 float32, 7 items of an earlier call; 2 items cannot be used and are left out" in done.stdout
    table = pyarrow.parquet.read_table(output)
    names = table.column("id").to_pylist()
    assert [Path(name).name for name in names] == ["a.png", "b.jpg", "c.png", "d.webp", "e.png"]
    vectors = np.array(table.column("vector").to_pylist(), np.float32)
    with load(made.bundle.folder, "ort-cpu", threads=1) as embedder:
        assert np.abs(vectors - embedder.embed("image", names)).max() <= 1e-6


def test_a_file_that_was_repaired_is_tried_again(made: Made, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "v.npy"
    command = [str(made.bundle.folder), "image", str(photos), "-o", str(output), "--backend", "ort-cpu"]
    assert CliRunner().invoke(embed, command).exit_code == 1
    for name in ("broken.png", "empty.png"):
        Image.new("RGB", (9, 9)).save(photos / name)
    assert CliRunner().invoke(embed, command).exit_code == 0
    assert np.load(output).shape == (7, 48)
    assert not (tmp_path / "v.npy.bad_items.jsonl").exists()


def test_rows_of_a_table_that_cannot_be_used_are_listed_or_left_out_with_the_others(made: Made, tmp_path: Path) -> None:
    lines = [f"word {n},{n}" for n in range(60)]
    lines[7], lines[30], lines[41] = "three,cells,here", "\u200b,30", "one"
    (tmp_path / "t.csv").write_text("\n".join(["text,id", *lines]) + "\n", encoding="utf-8")
    output = tmp_path / "v.parquet"
    command = [str(made.bundle.folder), "text", "--input", str(tmp_path / "t.csv"), "-o", str(output)]
    refused = CliRunner().invoke(embed, [*command, "--backend", "ort-cpu"])
    assert refused.exit_code == 1
    assert "Line 9 of the table" in refused.stderr
    assert "Lines like it: 32 (no text), 43 (1 cells for 2 columns)." in refused.stderr
    skipping = ["--backend", "ort-cpu", "--on-bad-item", "skip", "--bad-items-limit", "0.05"]
    done = CliRunner().invoke(embed, [*command, *skipping])
    assert done.exit_code == 0, done.output
    assert "57 x 48" in done.stdout
    reasons = [item.reason for item in read_report(tmp_path / "v.parquet.bad_items.jsonl")[1]]
    assert [reason.partition(": ")[2] for reason in reasons] == [
        "3 cells for 2 columns",
        "no text",
        "1 cells for 2 columns",
    ]
    assert pyarrow.parquet.read_table(output).column("id").to_pylist() == [
        str(n) for n in range(60) if n not in (7, 30, 41)
    ]


def test_an_index_says_how_many_were_left_out(made: Made, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "photos.index"
    command = ["build", str(made.bundle.folder), "image", str(photos), "-o", str(output), "--backend", "ort-cpu"]
    refused = CliRunner().invoke(index, command)
    assert "The input has 2 of 7 items that cannot be used" in refused.stderr
    assert not output.exists()
    done = CliRunner().invoke(index, [*command, "--on-bad-item", "skip", "--bad-items-limit", "0.5"])
    assert done.exit_code == 0, done.output
    stored = read_index(output)
    assert (stored.manifest.items, stored.manifest.left_out) == (5, 2)
    assert [Path(name).name for name in json.loads((output / "items.json").read_text())][-1] == "e.png"
    assert not (tmp_path / "photos.index.parts").exists()


def test_a_folder_stands_for_all_files_that_are_read_and_says_the_others(tmp_path: Path) -> None:
    for suffix in FILE_SUFFIXES["image"]:
        (tmp_path / "sub" / suffix[1:]).mkdir(parents=True)
        (tmp_path / "sub" / suffix[1:] / f"x{suffix.upper()}").touch()
    (tmp_path / "sub" / "y.heic").touch()
    (tmp_path / "._x.png").touch()
    opened = open_input("image", "image", [str(tmp_path)])
    assert opened.count() == len(FILE_SUFFIXES["image"])
    (note,) = opened.notes()
    assert note.startswith(f"2 files in {tmp_path} do not end like a file of kind image and are passed over: ")
    assert "y.heic" in note
