"""WebDataset shards: the same samples as the library sees, read by place, and what is refused."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from fluxtalk.datasets import PairDataset, load_dataset
from fluxtalk.datasets.shards import shards
from fluxtalk.datasets.shards.tar_index import index_shard
from fluxtalk.datasets.splits import split_by_hash
from fluxtalk.errors import DataError, UsageError
from tests.datasets.shard_files import (
    QUERY,
    expected_values,
    npy_bytes,
    plain,
    sample_members,
    write_shard,
    write_shards,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four shards of 25 samples each."""
    write_shards(tmp_path)
    return tmp_path


def _load(folder: Path, pattern: str = "s-{00..03}.tar", query: str = QUERY) -> PairDataset:
    return load_dataset(f"{folder}/{pattern}{query}", folder)


def _refused(folder: Path, pattern: str, query: str = QUERY) -> str:
    with pytest.raises(DataError) as caught:
        _load(folder, pattern, query)
    return str(caught.value)


def _of_split(data: PairDataset, split: str) -> dict[str, dict[str, Any]]:
    """Key to modality to value."""
    part = data.split(split)
    samples: dict[str, dict[str, Any]] = {key: {} for key in part.ids}
    for modality, items in part.items.items():
        for row, group in enumerate(items.groups):
            samples[part.ids[group]][modality] = items.values[row]
    return samples


def test_samples_values_and_splits(folder: Path) -> None:
    data = _load(folder)
    assert data.modalities == ("image", "text", "sound")
    assert data.name == f"{folder}/s-{{00..03}}.tar{QUERY}"
    found = {}
    for name in ("train", "validation", "test"):
        for key, values in _of_split(data, name).items():
            assert split_by_hash(key) == name
            found[key] = plain(values)
    assert found == {f"part/{i:03}": expected_values(i) for i in range(100)}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_grouping_is_that_of_webdataset(tmp_path: Path, form: int) -> None:
    names = ["a.b/c.jpg", "a.b/c.TXT", "d.x.y.npy", "d.cls", "noextension", ".hidden", "e/.f.txt", "__index__", "g.txt"]
    names += ["__meta__/h.txt", "h.__i__.txt", f"{'long/' * 30}name.txt", f"{'long/' * 30}name.jpg", "ü.txt"]
    path = tmp_path / "odd.tar"
    write_shard(path, [(name, name.encode() * 40) for name in names], form=form)
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("a-folder.txt")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    with path.open("rb") as file:
        expected = [
            {k: v for k, v in sample.items() if k != "__url__"}
            for sample in group_by_keys(tar_file_expander([{"url": str(path), "stream": file}]))
        ]
    data = path.read_bytes()
    with path.open("rb") as file:
        found = [
            {"__key__": sample.key, **{e: data[m.offset : m.offset + m.size] for e, m in sample.members.items()}}
            for sample in index_shard(path, file)
        ]
    assert found == expected
    assert len(found) == 7


def test_an_item_is_read_by_its_own_bytes_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    write_shard(path, [m for i in range(1, 60) for m in sample_members(i)])
    images = _load(tmp_path, "s.tar").split("train").items["image"].values
    row = len(images) // 2
    picture = images[row]
    data = path.read_bytes()
    start = data.index(picture)
    path.write_bytes(b"\xff" * start + picture + b"\xff" * (len(data) - start - len(picture)))
    assert images[row] == picture
    path.write_bytes(data[: start + 1])
    with pytest.raises(DataError, match=r"shard .*s\.tar was changed while it was used: the member at byte \d+"):
        images[row]


def test_values_are_pickled_and_read_by_threads_and_by_a_process_without_torch(folder: Path) -> None:
    data = _load(folder)
    values = data.split("train").items["image"].values
    expected = [values[row] for row in range(len(values))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(values.__getitem__, np.arange(len(values)))) == expected
    assert list(values[2:5]) == expected[2:5]
    assert values[-1] == expected[-1]
    with pytest.raises(IndexError):
        values[len(values)]
    (folder / "values").write_bytes(pickle.dumps((values, expected)))
    code = f"""
import pickle, sys
from pathlib import Path
from fluxtalk.datasets import load_dataset
values, expected = pickle.loads(Path({str(folder / "values")!r}).read_bytes())
assert list(values) == expected
assert load_dataset({data.name!r}, Path(".")).content_hash == {data.content_hash!r}
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_a_shard_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    write_shard(path, [m for i in (1, 2) for m in sample_members(i)])
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + 1024
    for size in (0, 1, 511, *range(512, end - 512, 256)):
        path.write_bytes(whole[:size])
        assert str(path) in _refused(tmp_path, "s.tar"), size
    # A header in the middle that is no header is not the end either.
    path.write_bytes(whole[:1024] + b"x" * 512 + whole[1536:])
    assert "damaged or cut off at byte 1024" in _refused(tmp_path, "s.tar")


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", sample_members(1), mode="w:gz")
    assert "whole, uncompressed tar" in _refused(tmp_path, "s.tar")


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the program tar, which writes sparse files")
def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    subprocess.run(["tar", "--sparse", "--format=gnu", "-cf", "s.tar", "a.jpg"], cwd=tmp_path, check=True)
    assert "'a.jpg' as a sparse file" in _refused(tmp_path, "s.tar")


def test_keys_and_files_that_occur_twice_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "apart.tar", [*sample_members(1), *sample_members(2), ("part/001.cls", b"1")])
    assert "the key 'part/001' at two places" in _refused(tmp_path, "apart.tar")
    write_shard(tmp_path / "file.tar", [*sample_members(1), ("part/001.Ast.npy", b"")])
    assert "has 'part/001.Ast.npy' twice" in _refused(tmp_path, "file.tar")
    write_shard(tmp_path / "s-0.tar", [*sample_members(1), *sample_members(2)])
    write_shard(tmp_path / "s-1.tar", [*sample_members(2), *sample_members(4)])
    assert "1 keys of" in _refused(tmp_path, "s-{0,1}.tar")
    assert "in several shards: part/002;" in _refused(tmp_path, "s-{0,1}.tar")


def test_missing_shards_are_all_counted_and_twenty_listed(folder: Path) -> None:
    sentence = _refused(folder, "s-{00..29}.tar")
    assert "26 of 30 files that do not exist" in sentence
    assert [i for i in range(30) if f"s-{i:02}.tar" in sentence.split("exist")[1]] == list(range(4, 24))
    assert "and 6 more" in sentence


def test_without_a_query_the_usual_extensions_are_taken(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "s.tar", [("a.webp", b"1"), ("a.txt", b"one"), ("b.jpeg", b"2"), ("b.TXT", b"two"), ("b.cls", b"")]
    )
    data = _load(tmp_path, "s.tar", "")
    assert data.modalities == ("image", "text")
    write_shard(tmp_path / "s.tar", [("a.txt", b"one"), ("a.npy", npy_bytes(np.ones(3)))])
    data = _load(tmp_path, "s.tar", "")
    assert data.modalities == ("text", "features")
    write_shard(tmp_path / "s.tar", [("a.txt", b"one"), ("a.mp4", b"x")])
    assert "have text of the usual modalities, image (jpg, jpeg, png, webp, " in _refused(tmp_path, "s.tar", "")


def test_the_first_extension_wins_and_a_blank_text_is_none(tmp_path: Path) -> None:
    both = [("a.png", b"second"), ("a.jpg", b"first"), ("a.txt", b" \n"), ("a.ast.npy", npy_bytes(np.ones(2)))]
    write_shard(tmp_path / "s.tar", [*both, *sample_members(1)])
    data = _load(tmp_path, "s.tar")
    values = {key: v for name, s in data.splits.items() if s.ids for key, v in _of_split(data, name).items()}
    assert values["a"]["image"] == b"first"
    assert "text" not in values["a"]
    streamed = {sample.key: sample.values for sample in shards.stream(data.name)}
    assert streamed["a"].keys() == {"image", "sound"}
    write_shard(tmp_path / "s.tar", [("a.jpg", b"1"), ("a.txt", b"")])
    assert "has text" in _refused(tmp_path, "s.tar", "?image=jpg&text=txt")


def test_unusable_members_and_modalities_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [("a.jpg", b"1"), ("a.txt", "café".encode("latin-1"))])
    assert "it must be UTF-8 text" in _refused(tmp_path, "s.tar", "")
    write_shard(tmp_path / "s.tar", [("a.txt", b"1"), ("a.npy", b"1")])
    assert "numpy.save" in _refused(tmp_path, "s.tar", "")
    write_shard(tmp_path / "s.tar", [("a.jpg", b"1"), ("b.txt", b"2")])
    assert "have items in fewer than two modalities" in _refused(tmp_path, "s.tar", "")
    assert "has sound" in _refused(tmp_path, "s.tar", "?image=jpg&sound=mp3")


@pytest.mark.parametrize("query", ["?image=jpg", "?image=jpg&text=txt&id=key", "?image=jpg;&text=txt"])
def test_a_query_that_cannot_be_meant_is_a_usage_error(folder: Path, query: str) -> None:
    with pytest.raises(UsageError, match="--data names"):
        _load(folder, query=query)
    with pytest.raises(UsageError, match="braces"):
        _load(folder, "s-{00..03.tar")


def test_the_content_hash_follows_the_bytes_and_not_the_folder(folder: Path, tmp_path: Path) -> None:
    base = _load(folder).content_hash
    moved = tmp_path / "moved"
    moved.mkdir()
    for shard in range(4):
        (folder / f"s-{shard:02}.tar").rename(moved / f"s-{shard:02}.tar")
    assert _load(moved).content_hash == base
    assert _load(moved, query="?image=jpg;png&text=txt&sound=npy;ast.npy").content_hash != base
    whole = (moved / "s-02.tar").read_bytes()
    (moved / "s-02.tar").write_bytes(whole.replace(b"text 60", b"text 06"))
    assert _load(moved).content_hash != base


def test_seen_compares_bytes(tmp_path: Path) -> None:
    keys = [f"k{i}" for i in range(200)]
    trained = next(key for key in keys if split_by_hash(key) == "train")
    tests = [key for key in keys if split_by_hash(key) == "test"][:2]
    members = []
    for key, picture in ((trained, b"same"), (tests[0], b"same"), (tests[1], b"else")):
        members += [(f"{key}.jpg", picture), (f"{key}.txt", key.encode())]
    write_shard(tmp_path / "s.tar", members)
    part = _load(tmp_path, "s.tar", "").split("test")
    assert dict(zip(part.ids, part.seen.tolist(), strict=True)) == {tests[0]: True, tests[1]: False}
