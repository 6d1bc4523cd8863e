"""A graph of near neighbors from a stranger: usearch maps the file and follows every number in it."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fluxtalk.artifacts.files import hash_file, write_json
from fluxtalk.artifacts.index import IndexSpec, read_index_manifest
from fluxtalk.artifacts.usearch_file import validate_usearch_file
from fluxtalk.errors import IndexFileError
from fluxtalk.runtime import DTYPES
from fluxtalk.runtime.index.build import build_index
from fluxtalk.runtime.index.nearest_neighbors import NearestNeighbors
from fluxtalk.runtime.index.search import SearchIndex

DIM, ITEMS = 12, 400
_VECTORS = 8 + ITEMS * 4 * DIM
"""Length of the vectors in float32, behind which the head begins."""
_GRAPH = _VECTORS + 64
_LEVELS = _GRAPH + 40
_NODES = _LEVELS + 2 * ITEMS


def written(folder: Path, dtype: str = "float32", items: int = ITEMS) -> Path:
    neighbors = NearestNeighbors.empty(DIM, dtype)
    neighbors.add(np.random.default_rng(0).standard_normal((items, DIM)).astype(np.float32))
    neighbors.save(folder / "vectors.usearch")
    return folder / "vectors.usearch"


def levels_of(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.int16, ITEMS, _LEVELS)


def first_of_level(content: bytes, level: int) -> tuple[int, int]:
    """A node of that level: its number, and where it begins."""
    levels = levels_of(content)
    number = int(np.flatnonzero(levels == level)[0])
    return number, _NODES + int((142 + 68 * levels[:number].astype(int)).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("items", [1, 2, 33, 3000])
def test_what_the_library_writes_is_valid(tmp_path: Path, dtype: str, items: int) -> None:
    path = written(tmp_path, dtype, items)
    validate_usearch_file(path, DIM, dtype, items)
    assert len(NearestNeighbors.view(path, DIM, dtype, items)) == items
    for dim, other in ((DIM, items + 1), (DIM + 8, items)):
        with pytest.raises(IndexFileError, match="build the index again"):
            validate_usearch_file(path, dim, dtype, other)


LIES = [
    # where, format, value, what the sentence says of it
    (0, "<I", ITEMS - 1, "does not hold 400 vectors of 48 bytes"),
    (4, "<I", 1 << 31, "does not hold 400 vectors of 48 bytes"),
    (_VECTORS, "<B", 0, "head is not that of usearch 2"),
    (_VECTORS + 7, "<H", 3, "head is not that of usearch 2"),
    (_VECTORS + 13, "<B", ord("e"), "types"),
    (_VECTORS + 14, "<B", 10, "types"),
    (_VECTORS + 16, "<B", 2, "types"),
    (_VECTORS + 17, "<Q", 1 << 60, "speaks of"),
    (_VECTORS + 25, "<Q", 1, "1 of them deleted"),
    (_VECTORS + 33, "<Q", 1 << 30, "speaks of"),
    (_GRAPH, "<Q", 1 << 61, "nodes"),
    (_GRAPH + 8, "<Q", 1 << 62, "neighbors"),
    (_GRAPH + 16, "<Q", 8, "neighbors"),
    (_GRAPH + 24, "<Q", 40, "levels"),
    (_GRAPH + 32, "<Q", ITEMS, "begins at node 400"),
    (_LEVELS, "<h", -1, "levels"),
    (_LEVELS, "<h", 32767, "levels"),
    (_NODES, "<Q", ITEMS, "the key of no item"),
    (_NODES, "<Q", ITEMS - 1, "two nodes have one key"),
    (_NODES + 8, "<h", 1, "another level"),
    (_NODES + 10, "<I", 33, "more neighbors than it has room for"),
    (_NODES + 14, "<I", ITEMS, "a neighbor that does not exist"),
]


@pytest.mark.parametrize(("at", "form", "value", "words"), LIES)
def test_a_number_that_lies_is_refused(tmp_path: Path, at: int, form: str, value: int, words: str) -> None:
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    assert levels_of(bytes(content))[0] == 0
    struct.pack_into(form, content, at, value)
    path.write_bytes(content)
    with pytest.raises(IndexFileError, match=words):
        validate_usearch_file(path, DIM, "float32", ITEMS)


def test_neighbors_of_upper_levels_must_be_there_too(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    _, start = first_of_level(whole, 1)
    upper = start + 142
    low, _ = first_of_level(whole, 0)
    lies = ((upper, 17, "room"), (upper + 4, ITEMS, "does not exist"), (upper + 4, low, "a level that it is not on"))
    for at, value, words in lies:
        content = bytearray(whole)
        struct.pack_into("<I", content, at, value)
        path.write_bytes(content)
        with pytest.raises(IndexFileError, match=words):
            validate_usearch_file(path, DIM, "float32", ITEMS)
    for cut in (0, 7, _VECTORS, _NODES - 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(IndexFileError, match="not a valid graph"):
            validate_usearch_file(path, DIM, "float32", ITEMS)
    path.write_bytes(whole + b"\0")
    with pytest.raises(IndexFileError, match="size"):
        validate_usearch_file(path, DIM, "float32", ITEMS)
    # What is behind the count is not read by anyone.
    content = bytearray(whole)
    count = struct.unpack_from("<I", content, upper)[0]
    if count < 16:
        struct.pack_into("<I", content, upper + 4 + 4 * count, 1 << 31)
    path.write_bytes(content)
    validate_usearch_file(path, DIM, "float32", ITEMS)


def test_no_changed_graph_ends_the_process(tmp_path: Path) -> None:
    path = written(tmp_path)
    script = Path(__file__).with_name("search_changed_graphs.py")
    command = [sys.executable, str(script), str(path), str(DIM), "float32", str(ITEMS), "600", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    refused, answered = map(int, done.stdout.split())
    assert refused > 200
    # Slots that no count covers, and vectors, may hold anything.
    assert answered > 20


@pytest.mark.parametrize("output", ["pooled", "tokens"])
def test_an_index_whose_hashes_were_made_right_is_refused_all_the_same(tmp_path: Path, output: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 2, DIM) if output == "tokens" else (50, DIM))
    folder = tmp_path / "index"
    spec = IndexSpec("bundle", "space", "image", output, 3, "float32")
    build_index(folder, [vectors.astype(np.float32)], [f"item {i}" for i in range(50)], spec)

    def with_file(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        manifest = read_index_manifest(folder).to_dict()
        write_json(folder / "index.json", {**manifest, "files": {**manifest["files"], name: hash_file(folder / name)}})

    whole = (folder / "vectors.usearch").read_bytes()
    words = np.random.default_rng(1).integers(0, 256, len(whole) - 8 - 50 * 4 * DIM - 104, dtype=np.uint8)
    with_file("vectors.usearch", whole[: -len(words)] + words.tobytes())
    with pytest.raises(IndexFileError, match="not a valid graph of near neighbors"):
        SearchIndex(folder)
    numbers = bytearray(whole)
    struct.pack_into("<f", numbers, 8, float("inf"))
    with_file("vectors.usearch", bytes(numbers))
    query = np.ones((1, DIM) if output == "pooled" else (1, 1, DIM), np.float32)
    with pytest.raises(IndexFileError, match="not finite"):
        SearchIndex(folder).search(query, 50)
    with_file("vectors.usearch", whole)
    if output == "tokens":
        np.save(folder / "tokens.npy", np.zeros((49, 2, DIM), np.float32))
        with_file("tokens.npy", (folder / "tokens.npy").read_bytes())
        with pytest.raises(IndexFileError, match=r"shape \(49, 2, 12\), and its index says"):
            SearchIndex(folder)
