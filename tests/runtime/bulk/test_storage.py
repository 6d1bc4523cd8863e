"""`fluxtalk embed` from and into object storage: a real client against a real S3 server on this machine."""

from __future__ import annotations

import errno
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from fluxtalk.artifacts.storage import RemotePath, StoredPath, read_files, stored_path, written_file
from fluxtalk.errors import BackendError, UsageError
from fluxtalk.runtime import Embedder, load
from fluxtalk.runtime.bulk.cli import embed
from fluxtalk.runtime.bulk.parts import PartFiles
from fluxtalk.runtime.index.cli import main as index
from tests.conftest import Made
from tests.stored import local_s3

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
WORDS = ["omega", "black chess queen", "digit one"]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with local_s3() as address:
        yield address


@pytest.fixture
def place(bucket: str, request: pytest.FixtureRequest) -> RemotePath:
    """A folder of this test's own."""
    path = stored_path(f"{bucket}/{request.node.name}")
    assert isinstance(path, RemotePath)
    return path


@pytest.fixture(scope="module")
def embedder(made: Made) -> Iterator[Embedder]:
    with load(made.bundle.folder) as loaded:
        yield loaded


def run(*arguments: object) -> Result:
    return CliRunner().invoke(embed, [str(argument) for argument in arguments])


def vectors_in(path: StoredPath) -> np.ndarray:
    vectors: np.ndarray = np.load(io.BytesIO(path.read_bytes()))
    return vectors


def names(folder: RemotePath) -> list[str]:
    return [str(file).removeprefix(f"{folder}/") for file in folder.files()]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".txt"])
def test_texts_and_vectors_in_a_bucket(made: Made, embedder: Embedder, place: RemotePath, suffix: str) -> None:
    table = place / f"in/rows{suffix}"
    with written_file(table) as file:
        if suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.table({"id": ["a", "b", "c"], "text": WORDS}), file)
        else:
            lines = WORDS if suffix == ".txt" else ["id,text", *(f"{i},{w}" for i, w in zip("abc", WORDS, strict=True))]
            file.write("\n".join(lines).encode())
    done = run(made.bundle.folder, "text", "--input", table, "-o", place / "out/v.parquet")
    assert done.exit_code == 0, done.output
    assert f"{place}/out/v.parquet: 3 x 48 float32" in done.output
    with (place / "out/v.parquet").open("rb") as file:
        found = pyarrow.parquet.read_table(file)
    assert found.column("id").to_pylist() == (WORDS if suffix == ".txt" else ["a", "b", "c"])
    assert np.allclose(found.column("vector").to_pylist(), embedder.embed("text", WORDS), atol=1e-6)
    assert names(place / "out") == ["v.parquet"]


def test_pictures_of_a_folder_or_a_table_in_a_bucket(
    made: Made, embedder: Embedder, place: RemotePath, table_path: Path
) -> None:
    pictures = sorted(table_path.parent.glob("*.png"))[:5]
    for picture in pictures:
        (place / "photos" / picture.name).write_bytes(picture.read_bytes())
    (place / "photos/notes.md").write_bytes(b"words")
    expected = embedder.embed("image", pictures)
    done = run(made.bundle.folder, "image", place / "photos", "--batch-size", 2, "-o", place / "folder.npy")
    assert done.exit_code == 0, done.output
    assert "1 files in" in done.output  # which are passed over
    assert np.allclose(vectors_in(place / "folder.npy"), expected, atol=1e-6)
    cells = [f"../photos/{pictures[0].name}", f"{place}/photos/{pictures[1].name}"]
    (place / "tables/t.jsonl").write_bytes("\n".join(f'{{"image": "{cell}"}}' for cell in cells).encode())
    done = run(made.bundle.folder, "image", "--input", place / "tables/t.jsonl", "-o", place / "table.npy")
    assert done.exit_code == 0, done.output
    assert np.allclose(vectors_in(place / "table.npy"), expected[:2], atol=1e-6)


def test_an_index_is_built_of_what_a_bucket_holds(
    made: Made, place: RemotePath, table_path: Path, tmp_path: Path
) -> None:
    for name, picture in zip("ab", sorted(table_path.parent.glob("*.png")), strict=False):
        (place / f"photos/{name}.png").write_bytes(picture.read_bytes())
    (place / "list.txt").write_bytes(f"{place}/photos/a.png\n{place}/photos/b.png\n".encode())
    arguments = ["build", made.bundle.folder, "image", "--input", place / "list.txt", "-o", tmp_path / "p.index"]
    done = CliRunner().invoke(index, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "2 image items" in done.output
    found = CliRunner().invoke(index, ["search", str(tmp_path / "p.index"), "text", "omega"])
    assert {line.split()[-1] for line in found.output.splitlines()} == {f"{place}/photos/{name}.png" for name in "ab"}


def test_a_missing_picture_is_named_and_what_is_done_goes_on(
    made: Made, place: RemotePath, table_path: Path, tmp_path: Path
) -> None:
    picture = next(table_path.parent.glob("*.png"))
    (place / "a.png").write_bytes(picture.read_bytes())
    (tmp_path / "list.txt").write_text(f"{picture}\n" * 256 + f"{place / 'b[1].png'}\n{place / 'a.png'}\n")
    arguments = (made.bundle.folder, "image", "--input", tmp_path / "list.txt", "-o", place / "v.npy")
    failed = run(*arguments)
    assert failed.exit_code == 1
    assert f"image item 256: {place}/b[1].png does not exist" in failed.output
    assert f"{place}/v.npy.bad_items.jsonl lists it" in failed.output
    assert names(place / "v.npy.parts") == ["00000000.safetensors", "00000001.safetensors"]
    (place / "b[1].png").write_bytes(picture.read_bytes())
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert "258 x 48 float32, 256 items of an earlier call" in done.output
    assert names(place) == ["a.png", "b[1].png", "v.npy"]


def test_parts_with_long_names_are_found_again(place: RemotePath) -> None:
    from fluxtalk.runtime.bulk.inputs import Item

    parts = PartFiles(place / "v.npy", {"job": 1})
    items = [Item("x" * 1000 + str(i), "text") for i in range(200)]  # more metadata than is asked for at first
    parts.write(3, items, np.ones((199, 2), np.float32), {7: "bad"})
    assert parts.has(3, items)
    assert not parts.has(3, items[:-1])
    assert not parts.has(4, items)
    assert parts.bad(3) == {7: "bad"}
    assert parts.ids(3) == [item.id for position, item in enumerate(items) if position != 7]
    assert not PartFiles(place / "v.npy", {"job": 2}).has(3, items)


def test_a_file_is_written_whole_or_not_at_all(place: RemotePath) -> None:
    with written_file(place / "v.npy") as file:
        file.write(b"old")

    def interrupted() -> None:
        with written_file(place / "v.npy") as file:
            for _ in range(51):  # more than goes up in one part
                file.write(bytes(1 << 20))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (place / "v.npy").read_bytes() == b"old"
    with written_file(place / "v.npy") as file:
        for _ in range(51):
            file.write(bytes(1 << 20))
    assert len((place / "v.npy").read_bytes()) == 51 << 20


def test_what_storage_refuses_is_one_sentence(made: Made, place: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run(made.bundle.folder, "text", "omega", "-o", "s3://nobody-has-this/v.npy")
    assert refused.exit_code == 1
    assert refused.output.startswith("error: [Errno 2] No such file or directory: 's3://nobody-has-this/")
    none = run(made.bundle.folder, "text", "--input", place / "none.csv", "-o", place / "v.npy")
    assert none.exit_code == 1
    assert f"The table {place}/none.csv cannot be read" in none.output
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "cachable", False)  # a client that has no keys
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(OSError, match=rf"NoCredentialsError: .*{re.escape(str(place))}/a.png") as refusal:
        read_files([place / "a.png"])
    assert refusal.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("address", "error", "sentence"),
    [
        ("https://host/v.npy", UsageError, "is a web address, which is not read; download it"),
        ("s3://", UsageError, "names no file; give s3://BUCKET/NAME"),
        ("nothing://b/v.npy", UsageError, "is of a kind that fsspec does not know"),
        ("gs://b/v.npy", BackendError, r"needs a library that is not installed: pip install 'fluxtalk\[gcs\]'"),
    ],
)
def test_addresses_that_are_not_read(address: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        stored_path(address)


def test_without_fsspec_the_extra_is_named(made: Made) -> None:
    code = f"""
import sys
sys.modules["fsspec"] = None
from fluxtalk.cli import main
main(["embed", {str(made.bundle.folder)!r}, "text", "omega", "-o", "s3://bucket/v.npy"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    wanted = "error: s3://bucket/v.npy needs a library that is not installed: pip install 'fluxtalk[s3]'.\n"
    assert done.stderr == wanted


def test_local_paths_stay_paths(tmp_path: Path) -> None:
    assert stored_path("C:/photos/1.png") == Path("C:/photos/1.png")
    assert stored_path((tmp_path / "a b.csv").as_uri()) == tmp_path / "a b.csv"


@pytest.mark.parametrize(
    ("base", "relative", "found"),
    [("b/t", "1.png", "b/t/1.png"), ("b/t", "../p/./1.png", "b/p/1.png"), ("b", "../../1.png", "b/1.png")],
)
def test_paths_are_relative_to_the_folder_and_stay_in_the_bucket(base: str, relative: str, found: str) -> None:
    assert RemotePath("s3", base) / relative == RemotePath("s3", found)
