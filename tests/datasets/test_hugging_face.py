"""Folders that the real `datasets` saved: the same pairs as in a table, read lazily and with its splits."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fluxtalk.datasets import load_dataset
from fluxtalk.datasets.data_paths import first_existing, with_absolute_path, with_relative_path
from fluxtalk.errors import DataError, UsageError

datasets = pytest.importorskip("datasets", reason="hfds: needs fluxtalk[datasets]")
FEATURES = datasets.Features(photo=datasets.Image(), caption=datasets.Value("string"), number=datasets.Value("int64"))


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8))


def rows(*seeds: int) -> Any:
    """Two captions of each photograph, and a row without one."""
    table: dict[str, list[Any]] = {"photo": [], "caption": [], "number": []}
    for seed in seeds:
        for caption in (f"photo {seed}", f"picture {seed}"):
            table["photo"].append(photo(seed))
            table["caption"].append(caption)
            table["number"].append(seed)
    table["photo"].append(photo(99))
    table["caption"].append("  ")
    table["number"].append(99)
    return datasets.Dataset.from_dict(table, features=FEATURES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pairs"
    datasets.DatasetDict(train=rows(0, 1, 2), val=rows(3, 4), test=rows(5, 0)).save_to_disk(folder)
    return folder


def load(name: str, **options: Any) -> Any:
    return load_dataset(name, Path("unused"), **options)


def test_pairs_splits_and_gaps(saved: Path) -> None:
    data = load(f"hfds:{saved}?image=photo&text=caption")
    assert data.modalities == ("image", "text")
    assert {name: len(split.ids) for name, split in data.splits.items()} == {"train": 3, "validation": 2, "test": 2}
    train = data.split("train")
    assert len(train.items["image"]) == 3  # encoded once, whatever the number of captions
    assert list(train.items["text"].values) == [f"{word} {i}" for i in range(3) for word in ("photo", "picture")]
    assert train.items["text"].groups.tolist() == [0, 0, 1, 1, 2, 2]
    pixels = np.asarray(Image.open(io.BytesIO(train.items["image"].values[1])))
    assert np.array_equal(pixels, np.asarray(photo(1)))
    # The test split has a photograph that training has, too.
    assert data.split("test").seen.tolist() == [False, True]
    assert any("3 of 10 ids have items in fewer than two modalities" in note for note in data.notes)
    assert data.public_name == "hfds:pairs?image=photo&text=caption"


def test_an_id_column_says_what_belongs_together(saved: Path) -> None:
    data = load(f"hfds:{saved}/train?image=photo&text=caption&id=number")
    assert sorted(id_ for split in data.splits.values() for id_ in split.ids) == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"The id '99' of .* is in train and in validation; an id has one split"):
        load(f"hfds:{saved}?image=photo&text=caption&id=number")


def test_the_content_and_not_the_place_is_hashed(saved: Path, tmp_path: Path) -> None:
    name = f"hfds:{saved}?image=photo&text=caption"
    again = tmp_path / "again"
    datasets.load_from_disk(saved).save_to_disk(again, num_shards={"train": 2, "val": 1, "test": 1})
    assert load(name.replace(str(saved), str(again))).content_hash == load(name).content_hash
    changed = datasets.load_from_disk(saved)
    changed["test"] = changed["test"].select(range(3))
    changed.save_to_disk(tmp_path / "changed")
    assert load(name.replace(str(saved), str(tmp_path / "changed"))).content_hash != load(name).content_hash


def test_values_are_pickled_and_sliced(saved: Path) -> None:
    values = load(f"hfds:{saved}?image=photo&text=caption").split("train").items["text"].values
    assert list(pickle.loads(pickle.dumps(values))) == list(values)
    assert list(values[1:3]) == ["picture 0", "photo 1"]


def test_lists_of_numbers_are_features(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 3, 4)).astype(np.float32)
    features = datasets.Features(
        sensor=datasets.Array2D((3, 4), "float32"), text=datasets.Value("string"), label=datasets.ClassLabel(2)
    )
    table = {"sensor": list(vectors), "text": [f"word {i}" for i in range(40)], "label": [0, 1] * 20}
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path / "made")
    data = load(f"hfds:{tmp_path / 'made'}")
    assert data.modalities == ("sensor", "text")
    train = data.split("train")
    row = int(train.items["text"].values[0].split()[1])
    assert train.items["sensor"].values[0].dtype == np.float32
    assert np.array_equal(train.items["sensor"].values[0], vectors[row])


def test_names_move_with_their_path(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    assert with_absolute_path("hfds:pairs?image=photo&text=caption") == f"hfds:{saved}?image=photo&text=caption"
    assert with_relative_path(f"hfds:{saved}", saved.parent / "runs") == "hfds:../pairs"
    assert first_existing(["hfds:nowhere", "hfds:pairs"]) == "hfds:pairs"


def test_what_cannot_be_read_is_a_sentence(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        load(f"hfds:{tmp_path}/none")
    with pytest.raises(DataError, match="cannot be read as a data set of Hugging Face"):
        load(f"hfds:{tmp_path}")
    with pytest.raises(DataError, match=r"has no column picture; it has photo \(Image\), caption \(Value\)"):
        load(f"hfds:{saved}?image=picture&text=caption")
    with pytest.raises(DataError, match=r"The column number of .* is not of images"):
        load(f"hfds:{saved}?image=photo&text=number")
    with pytest.raises(UsageError, match="leave split out of --data"):
        load(f"hfds:{saved}?image=photo&text=caption&split=number")
    datasets.DatasetDict(train=rows(1), dev=rows(2)).save_to_disk(tmp_path / "dev")
    with pytest.raises(DataError, match="has the splits train, dev; rename them"):
        load(f"hfds:{tmp_path / 'dev'}")
