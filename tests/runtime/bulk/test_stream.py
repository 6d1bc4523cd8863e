"""`fluxtalk embed` over tables, lists and folders: what is written, resumed and refused."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.errors import InputError, UsageError
from fluxtalk.runtime import Embedder, FakeSession, load
from fluxtalk.runtime.bulk.inputs import Item, open_input
from fluxtalk.runtime.bulk.stream import EmbedOptions, embed_to_file
from tests.conftest import Made
from tests.runtime.test_serving import one_sentence, run

WORDS = ["omega", "black chess queen", "latin small letter a with grave", "digit one", "snowman"]
ROWS = [(f"id-{i}", f"{WORDS[i % 5]} {WORDS[i % 3]}") for i in range(23)]
TEXTS = [text for _, text in ROWS]


def write_table(folder: Path, suffix: str) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("id", "text"), *ROWS])
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": text, "id": id_}) for id_, text in ROWS) + "\n\n")
    else:
        table = pyarrow.table({"id": [id_ for id_, _ in ROWS], "text": TEXTS})
        pyarrow.parquet.write_table(table, path, row_group_size=7)
    return path


@pytest.fixture
def embedder(made: Made) -> Iterator[Embedder]:
    with load(made.bundle.folder) as loaded:
        yield loaded


class Counting(FakeSession):
    """Counts the items that it is given, and fails where it is told to."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(dim=48)
        self.items = 0
        self.limit = limit

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, np.ndarray]:
        self.items += len(inputs["input_ids"])
        if self.limit is not None and self.items > self.limit:
            raise KeyboardInterrupt
        return super().run(inputs, k, outputs)


def items(texts: list[str] = TEXTS) -> list[Item]:
    return [Item(text, text) for text in texts]


@pytest.mark.parametrize("output", [".npy", ".parquet"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_column_of_a_table_becomes_vectors(
    made: Made, embedder: Embedder, tmp_path: Path, suffix: str, output: str
) -> None:
    written = tmp_path / f"vectors{output}"
    done = run("embed", made.bundle.folder, "text", "--input", write_table(tmp_path, suffix), "-k", 2, "-o", written)
    assert done.exit_code == 0, done.output
    assert f"{written}: 23 x 48 float32" in done.output
    expected = embedder.embed("text", TEXTS, 2)
    if output == ".npy":
        found = np.load(written)
    else:
        table = pyarrow.parquet.read_table(written)
        assert table.column("id").to_pylist() == [id_ for id_, _ in ROWS]
        found = np.array(table.column("vector").to_pylist(), np.float32)
    assert np.abs(found - expected).max() <= 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"rows{suffix}", written.name])


@pytest.mark.parametrize(
    ("kind", "dtype", "width"),
    [
        ("tokens", "float16", (4, 48)),
        ("concat", "int8", (144,)),
        ("pooled", "binary", (6,)),
        ("complementary", "float32", (1, 48)),
    ],
)
def test_every_kind_and_type_is_written_in_both_formats(
    embedder: Embedder, tmp_path: Path, kind: str, dtype: str, width: tuple[int, ...]
) -> None:
    expected = embedder.embed("text", TEXTS[:7], output=kind, dtype=dtype)
    wanted = EmbedOptions("text", None, kind, dtype)
    for name in ("v.npy", "v.parquet"):
        written = embed_to_file(embedder, items(TEXTS[:7]), tmp_path / name, wanted, part_items=3)
        assert written.shape == (7, *width)
    array = np.load(tmp_path / "v.npy")
    column = pyarrow.parquet.read_table(tmp_path / "v.parquet").column("vector").to_pylist()
    for found in (array, np.array(column, dtype=expected.dtype)):
        assert found.dtype == expected.dtype
        difference = found.astype(np.float64) - expected.astype(np.float64)
        # One more or less where rounding meets another batch; a sign only where the number is next to nothing.
        assert np.abs(difference).max() <= {"float32": 1e-5, "float16": 1e-2, "int8": 1, "binary": 0}[dtype]


def test_paths_are_relative_to_the_table_and_other_columns_can_be_named(
    made: Made, embedder: Embedder, table_path: Path, tmp_path: Path
) -> None:
    pictures = sorted(path.name for path in table_path.parent.glob("test-*.png"))[:5]
    table = table_path.parent / "other.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("photo", "number"), *[(name, i) for i, name in enumerate(pictures)]])
    parts = ("embed", made.bundle.folder, "image", "--input", table)
    done = run(*parts, "--column", "photo", "--id_column", "number", "-o", tmp_path / "v.parquet")
    assert done.exit_code == 0, done.output
    written = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert written.column("id").to_pylist() == [str(i) for i in range(5)]
    expected = embedder.embed("image", [table_path.parent / name for name in pictures])
    assert np.abs(np.array(written.column("vector").to_pylist()) - expected).max() <= 1e-6
    done = run(*parts, "--column", "photo", "-o", tmp_path / "v.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "v.parquet").column("id").to_pylist() == pictures
    one_sentence(run(*parts, "-o", tmp_path / "w.npy"), 2, "no image", "--column")
    one_sentence(run(*parts, "--column", "photo", "--id_column", "name", "-o", tmp_path / "w.npy"), 2, "--id-column")
    table.unlink()


def test_bytes_in_a_parquet_column_are_pictures(
    made: Made, embedder: Embedder, table_path: Path, tmp_path: Path
) -> None:
    pictures = sorted(table_path.parent.glob("test-*.png"))[:3]
    pyarrow.parquet.write_table(pyarrow.table({"image": [p.read_bytes() for p in pictures]}), tmp_path / "p.parquet")
    done = run("embed", made.bundle.folder, "image", "--input", tmp_path / "p.parquet", "-o", tmp_path / "v.parquet")
    assert done.exit_code == 0, done.output
    written = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert written.column("id").to_pylist() == ["1", "2", "3"]
    expected = embedder.embed("image", pictures)
    assert np.abs(np.array(written.column("vector").to_pylist()) - expected).max() <= 1e-6


def test_what_was_interrupted_goes_on(made: Made, tmp_path: Path) -> None:
    wanted, output = EmbedOptions("text"), tmp_path / "v.npy"
    stopped, going_on = Counting(limit=12), Counting()
    with pytest.raises(KeyboardInterrupt):
        embed_to_file(Embedder(made.bundle, {"text": stopped}, ""), items(), output, wanted, part_items=5)
    assert not output.exists()
    written = embed_to_file(Embedder(made.bundle, {"text": going_on}, ""), items(), output, wanted, part_items=5)
    assert (written.resumed, going_on.items) == (10, 13)
    assert np.array_equal(np.load(output), Embedder(made.bundle, {"text": Counting()}, "").embed("text", TEXTS))
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("changed", ["item", "k", "output", "dtype"])
def test_parts_of_anything_else_are_computed_again(made: Made, tmp_path: Path, changed: str) -> None:
    output = tmp_path / "v.npy"
    stopped = Embedder(made.bundle, {"text": Counting(limit=12)}, "")
    with pytest.raises(KeyboardInterrupt):
        embed_to_file(stopped, items(), output, EmbedOptions("text"), part_items=5)
    texts = [*TEXTS[:7], "snowman", *TEXTS[8:]] if changed == "item" else TEXTS
    settings = {"k": {"k": 1}, "output": {"output": "tokens"}, "dtype": {"dtype": "int8"}}.get(changed, {})
    session = Counting()
    embedder = Embedder(made.bundle, {"text": session}, "")
    written = embed_to_file(embedder, items(texts), output, EmbedOptions("text", **settings), part_items=5)  # type: ignore[arg-type]
    # Of the two finished parts, the one that holds the other item is done again; for other vectors, both.
    assert written.resumed == (5 if changed == "item" else 0)
    assert session.items == len(texts) - written.resumed
    assert np.array_equal(np.load(output), embedder.embed("text", texts, **settings))  # type: ignore[arg-type]


def test_a_killed_process_is_taken_up_by_the_next(made: Made, embedder: Embedder, tmp_path: Path) -> None:
    texts = [f"{WORDS[i % 5]} {i}" for i in range(20_000)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    output = tmp_path / "v.npy"
    command = [
        sys.executable, "-c", "from fluxtalk.cli import main; main()", "embed", str(made.bundle.folder), "text",
        "--input", str(tmp_path / "texts.txt"), "-o", str(output), "--threads", "1", "--batch_size", "4",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    finished = tmp_path / "v.npy.parts" / "00000002.safetensors"
    deadline = time.monotonic() + 60
    while not finished.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    resumed = int(done.stdout.split(", ")[1].split()[0])
    assert resumed >= 3 * 256
    assert np.load(output, mmap_mode="r").shape == (20_000, 48)
    rows = [0, 1, 700, 800, 19_999]
    assert np.abs(np.load(output)[rows] - embedder.embed("text", [texts[row] for row in rows])).max() <= 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt", "v.npy"]


def test_memory_does_not_grow_with_the_number_of_items(made: Made, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        embedder = Embedder(made.bundle, {"text": Counting()}, "")
        stream = (Item(str(i), WORDS[i % 5]) for i in range(count))
        tracemalloc.start()
        try:
            embed_to_file(embedder, stream, tmp_path / "v.npy", EmbedOptions("text", output="tokens"), part_items=32)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small = peak(64)
    assert peak(1024) <= small + 200_000  # of vectors alone there are 786,432 bytes


def test_a_bad_item_keeps_everything_else(made: Made, tmp_path: Path) -> None:
    session = Counting()
    embedder, output = Embedder(made.bundle, {"text": session}, ""), tmp_path / "v.npy"
    with pytest.raises(InputError, match=r"text item 7: .*blank"):
        embed_to_file(embedder, items([*TEXTS[:7], " ", *TEXTS[8:]]), output, EmbedOptions("text"), part_items=5)
    assert not output.exists()
    session.items = 0
    assert embed_to_file(embedder, items(), output, EmbedOptions("text"), part_items=5).resumed == 18
    assert session.items == 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text\none\n\ntwo,three\n", "Line 4 .*2 cells for 1 columns"),
        ("a.csv", "text,id\none,1\n ,2\n", "Line 3 .*no text.*--skip-empty"),
        ("a.csv", 'text,id\none,1\n"two,2\nthree,3\n', "unexpected end of data"),
        ("a.csv", "text\n\xff", "cannot be read"),
        ("a.jsonl", '{"text": "one"}\n{"text"\n', "Line 2 .*not valid JSON"),
        ("a.jsonl", '{"text": "one"}\n["two"]\n', "Line 2 .*not a JSON object"),
        ("a.jsonl", '{"text": "one"}\n{"id": 2}\n', "Line 2 .*no text"),
        ("a.parquet", "PAR1", "cannot be read"),
        ("a.txt", "one\n\xff", "cannot be read"),
    ],
)
def test_malformed_inputs_are_one_sentence_before_anything_is_computed(
    made: Made, tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        list(open_input("text", "text", [], path))
    done = run("embed", made.bundle.folder, "text", "--input", path, "-o", tmp_path / "v.npy")
    one_sentence(done, 1)
    assert sorted(tmp_path.iterdir()) == [path]


def test_rows_without_the_item_can_be_left_out(made: Made, embedder: Embedder, tmp_path: Path) -> None:
    rows = [["a", "alpha"], ["b", ""], ["c", " "], ["d", "delta"], ["e", "e " * 100_000]]
    table = tmp_path / "t.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    parts = ("embed", made.bundle.folder, "text", "--input", table, "--skip_empty", "-o")
    done = run(*parts, tmp_path / "v.parquet")
    assert done.exit_code == 0, done.output
    written = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert written.column("id").to_pylist() == ["a", "d", "e"]
    expected = embedder.embed("text", [text for _, text in rows if text.strip()])
    assert np.abs(np.array(written.column("vector").to_pylist()) - expected).max() <= 1e-6
    one_sentence(run(*parts, tmp_path / "v.npy"), 2, "which rows were left out", ".parquet")
    one_sentence(
        run("embed", made.bundle.folder, "text", "a", "--skip_empty", "-o", tmp_path / "w.parquet"), 2, "table"
    )


def test_inputs_that_cannot_be_meant_are_refused(made: Made, tmp_path: Path) -> None:
    table, output = write_table(tmp_path, ".csv"), tmp_path / "v.npy"
    bundle = made.bundle.folder
    one_sentence(run("embed", bundle, "text", "omega", "--input", table, "-o", output), 2, "not both")
    one_sentence(run("embed", bundle, "text", "omega", "--column", "text", "-o", output), 2, "--column")
    one_sentence(run("embed", bundle, "text", "--input", tmp_path / "gone.csv", "-o", output), 1, "gone.csv")
    one_sentence(run("embed", bundle, "text", "--input", table, "-o", tmp_path / "v.txt"), 2, ".parquet")
    empty = tmp_path / "empty.csv"
    empty.write_text("text\n")
    one_sentence(run("embed", bundle, "text", "--input", empty, "-o", output), 2, "nothing to embed")
    with pytest.raises(UsageError, match="nothing to embed"):
        open_input("text", "text", [])
    assert not output.exists()
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("command", ["embed", "index build", "index search"])
def test_help_shows_one_spelling_and_earlier_ones_are_accepted(command: str) -> None:
    shown = run(*command.split(), "--help").output
    assert "-k, --k INTEGER" in shown
    assert "--tokens" not in shown
    assert "_" not in shown.split("Options:")[1]


def test_earlier_spellings_mean_the_same(made: Made, tmp_path: Path) -> None:
    written = []
    table = write_table(tmp_path, ".csv")
    for i, (k, id_column, skip, size) in enumerate(
        [
            ("--k", "--id-column", "--skip-empty", "--batch-size"),
            ("--tokens", "--id_column", "--skip_empty", "--batch_size"),
        ]
    ):
        output = tmp_path / f"{i}.parquet"
        parts = ("--input", table, k, 2, id_column, "text", skip, size, 7, "-o", output)
        assert run("embed", made.bundle.folder, "text", *parts).exit_code == 0
        written.append(pyarrow.parquet.read_table(output))
    assert written[0].equals(written[1])
