"""Folders of precomputed features: layouts, lazy reading, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fluxtalk.datasets import PairDataset, load_dataset, splits
from fluxtalk.errors import DataError
from fluxtalk.preprocess.features import FeaturesPreprocessor

Arrays = Mapping[str, NDArray[Any]]
DIMS = {"text": 3, "video": 4}


def _arrays(ids: list[str], dim: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {id_: rng.standard_normal((1 + i % 3, dim)).astype(np.float16) for i, id_ in enumerate(ids)}


def _npy(folder: Path, arrays: Arrays) -> None:
    for name, array in arrays.items():
        (folder / f"{name}.npy").parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", array)


def _tensors(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(arrays), path)


def _load(folder: Path) -> PairDataset:
    return load_dataset(str(folder), folder)


def _refused(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        _load(folder)
    return str(caught.value)


def _prepared(data: PairDataset, split: str, modality: str) -> dict[str, list[NDArray[Any]]]:
    """Id to its arrays, as training sees them."""
    part = data.split(split)
    items = part.items[modality]
    found: dict[str, list[NDArray[Any]]] = {}
    for row, group in enumerate(items.groups):
        array = FeaturesPreprocessor(DIMS[modality]).prepare(items.values[row])
        found.setdefault(part.ids[group], []).append(array)
    return found


def test_npy_and_safetensors_are_the_same_data_set(tmp_path: Path) -> None:
    ids = [f"clip-{i}" for i in range(40)]
    video, text = _arrays(ids, 4), _arrays(ids, 3, seed=1)
    _npy(tmp_path / "a" / "video", video)
    _npy(tmp_path / "a" / "text", text)
    _tensors(tmp_path / "b" / "video.safetensors", video)
    _npy(tmp_path / "b" / "text", text)
    (tmp_path / "b" / "README.md").write_text("left alone")
    one, two = _load(tmp_path / "a"), _load(tmp_path / "b")
    assert one.modalities == two.modalities == ("text", "video")
    assert one.content_hash == two.content_hash
    assert one.name == str(tmp_path / "a")
    for name in ("train", "validation", "test"):
        assert one.split(name).ids == two.split(name).ids
        assert {splits.split_by_hash(id_) for id_ in one.split(name).ids} == {name}
        for data in (one, two):
            for modality, arrays in (("video", video), ("text", text)):
                for id_, (array,) in _prepared(data, name, modality).items():
                    np.testing.assert_array_equal(array, arrays[id_].astype(np.float32))
    assert sum(len(part.ids) for part in two.splits.values()) == 40


def test_split_folders_alternatives_and_missing_modalities(tmp_path: Path) -> None:
    _npy(tmp_path / "train" / "video", {"deep/one": np.ones((2, 4)), "two": np.zeros(4), "three": np.ones((1, 4))})
    captions = {"deep/one#10": np.full(3, 10.0), "deep/one#9": np.full(3, 9.0), "two": np.full((1, 3), 2.0)}
    _tensors(tmp_path / "train" / "text.safetensors", captions)
    _npy(tmp_path / "train" / "sound", {"two": np.ones((5, 2)), "three": np.ones((5, 2))})
    for modality, dim in (("video", 4), ("text", 3), ("sound", 2)):
        _npy(tmp_path / "test" / modality, {"four": np.full((2, dim), 4.0)})
    _npy(tmp_path / "test" / "video", {"five": np.ones((1, 4))})
    _npy(tmp_path / "test" / "text", {"five": np.full((1, 3), 5.0)})
    data = _load(tmp_path)
    train, test = data.split("train"), data.split("test")
    assert train.ids == ("deep/one", "three", "two")
    # By number, not by name: 9 before 10. A vector is a sequence of one.
    assert [a.tolist() for a in _prepared(data, "train", "text")["deep/one"]] == [[[9.0] * 3], [[10.0] * 3]]
    assert sorted(_prepared(data, "train", "text")) == ["deep/one", "two"]
    assert [train.ids[g] for g in train.items["sound"].groups] == ["three", "two"]
    # `five` has the video of `three`; `four` has nothing that was trained on.
    assert dict(zip(test.ids, test.seen.tolist(), strict=True)) == {"five": True, "four": False}
    assert not data.splits["validation"].ids


def test_tensors_are_read_after_pickling_and_by_several_threads(tmp_path: Path) -> None:
    ids = [f"clip-{i}" for i in range(50)]
    video = _arrays(ids, 4)
    _tensors(tmp_path / "train" / "video.safetensors", video)
    _tensors(tmp_path / "train" / "text.safetensors", _arrays(ids, 3))
    part = _load(tmp_path).split("train")
    values = part.items["video"].values
    values[0]
    copy = pickle.loads(pickle.dumps(values))
    assert len(pickle.dumps(values[:1])) < len(pickle.dumps(values))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(copy.__getitem__, np.arange(50)))
    for id_, array in zip(part.ids, read, strict=True):
        np.testing.assert_array_equal(array, video[id_])
    (tmp_path / "train" / "video.safetensors").unlink()
    with pytest.raises(DataError, match=r"tensor .*video\.safetensors: clip-0 cannot be read"):
        pickle.loads(pickle.dumps(values))[0]


def test_bfloat16_tensors_are_features(tmp_path: Path) -> None:
    values = np.arange(8).reshape(2, 4).astype(ml_dtypes.bfloat16)
    _tensors(tmp_path / "train" / "video.safetensors", {"a": values})
    _npy(tmp_path / "train" / "text", {"a": np.ones(3)})
    (array,) = _prepared(_load(tmp_path), "train", "video")["a"]
    assert array.dtype == np.float32
    assert array.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_content_hash_follows_values_ids_and_splits(tmp_path: Path) -> None:
    def hashed(name: str, id_: str, value: float, split: str = "train") -> str:
        _npy(tmp_path / name / split / "video", {id_: np.full(4, value)})
        _npy(tmp_path / name / split / "text", {id_: np.ones(3)})
        return _load(tmp_path / name).content_hash

    base = hashed("a", "x", 1)
    assert hashed("b", "x", 1) == base
    assert len({base, hashed("c", "x", 2), hashed("d", "y", 1), hashed("e", "x", 1, "test")}) == 4


def test_unusable_arrays_are_all_counted_and_twenty_listed(tmp_path: Path) -> None:
    good = {f"a{i:02}": np.ones((2, 4)) for i in range(3)}
    bad: dict[str, NDArray[Any]] = {f"b{i:02}": np.ones((2, 5)) for i in range(20)}
    bad |= {"c0": np.array([1.0, np.nan, 0.0, 0.0]), "c1": np.ones((0, 4)), "c2": np.array(["x"] * 4)}
    _npy(tmp_path / "train" / "video", {**good, **bad})
    _npy(tmp_path / "train" / "text", {name: np.ones(3) for name in (*good, *bad)})
    sentence = _refused(tmp_path)
    assert f"23 unusable arrays of {2 * 26}" in sentence
    assert sentence.count(".npy (") == 20
    assert "and 3 more" in sentence
    assert "b00.npy (A feature array must have shape (length, 4)" in sentence
    for name in [*bad][:20]:
        (tmp_path / "train" / "video" / f"{name}.npy").unlink()
        (tmp_path / "train" / "text" / f"{name}.npy").unlink()
    sentence = _refused(tmp_path)
    assert [part in sentence for part in ("NaN", "(0, 4)", "must hold numbers")] == [True] * 3


def test_a_malformed_folder_of_features_is_refused(tmp_path: Path) -> None:
    assert "0 modalities" in _refused(tmp_path)
    _npy(tmp_path / "video", {"a": np.ones(4)})
    assert "1 modalities" in _refused(tmp_path)
    _npy(tmp_path / "Text", {"a": np.ones(3)})
    assert "'Text'" in _refused(tmp_path)
    (tmp_path / "Text").rename(tmp_path / "text")
    (tmp_path / "text" / "a.npy").rename(tmp_path / "text" / "b.npy")
    assert "have items in fewer than two modalities: a, b;" in _refused(tmp_path)
    _npy(tmp_path / "text", {"a": np.ones(3)})
    (gap,) = load_dataset(str(tmp_path), tmp_path).notes
    assert gap.startswith("1 of 2 ids have items in fewer than two modalities")
    _npy(tmp_path / "video", {"b": np.ones(4)})
    (tmp_path / "text" / "c.pt").write_bytes(b"")
    assert "not .npy: c.pt" in _refused(tmp_path)
    (tmp_path / "text" / "c.pt").unlink()
    _tensors(tmp_path / "text.safetensors", {"a": np.ones(3)})
    assert "both in" in _refused(tmp_path)
    (tmp_path / "text.safetensors").unlink()
    (tmp_path / "test").mkdir()
    assert "text, video beside test" in _refused(tmp_path)
    (tmp_path / "test").rmdir()
    (tmp_path / "sound.safetensors").write_bytes(b"\x00" * 7)
    assert "sound.safetensors cannot be read" in _refused(tmp_path)


def test_an_id_in_two_splits_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _npy(tmp_path / split / "video", {"a": np.ones(4)})
        _npy(tmp_path / split / "text", {"a": np.ones(3)})
    assert "1 ids in several splits: 'a' (test, train)" in _refused(tmp_path)
