"""What every data set keeps: which ids may be in a split, and how `--data` names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fluxtalk.datasets import Items, Split, load_dataset
from fluxtalk.datasets.data_name import parse_data_name
from fluxtalk.datasets.splits import ItemColumn, make_splits
from fluxtalk.errors import DataError, UsageError


def _items(groups: list[int]) -> Items:
    return Items([f"v{g}" for g in groups], np.array(groups, dtype=np.int64), np.ones(len(groups), dtype=bool))


def _split(ids: int, **groups: list[int]) -> Split:
    names = tuple(f"id-{i}" for i in range(ids))
    return Split("train", names, {m: _items(g) for m, g in groups.items()}, np.zeros(ids, dtype=bool))


def test_an_id_may_lack_modalities_but_not_all_but_one() -> None:
    split = _split(3, image=[0, 0, 1], text=[1, 2], sound=[0, 2])
    assert len(split.items["image"]) == 3
    # Several items of one modality are no pair.
    with pytest.raises(DataError, match=r"2 of 3 ids in the train split .* for example 'id-1'"):
        _split(3, image=[0, 1, 1, 1], text=[0, 2], sound=[0])


def test_every_modality_of_a_split_has_an_item() -> None:
    with pytest.raises(DataError, match="2 ids and no sound item"):
        _split(2, image=[0, 1], text=[0, 1], sound=[])
    assert _split(0, image=[], text=[], sound=[]).ids == ()


def test_dividing_keeps_every_item_with_its_id_and_its_order() -> None:
    rng = np.random.default_rng(0)
    ids = [f"id-{i}" for i in range(40)]
    homes = [("train", "validation", "test")[i] for i in rng.integers(0, 3, 40)]
    groups = {m: np.concatenate([rng.permutation(40), rng.integers(0, 40, 20)]) for m in ("a", "b", "c")}
    prints = {m: rng.integers(0, 70, 60).astype(np.uint64) for m in groups}
    columns = {
        m: ItemColumn(groups[m], prints[m], lambda rows, m=m: [f"{m}{row}" for row in rows])  # type: ignore[misc]
        for m in groups
    }
    splits = make_splits(ids, homes, columns)
    for name, split in splits.items():
        assert list(split.ids) == [id_ for id_, home in zip(ids, homes, strict=True) if home == name]
        for m, items in split.items.items():
            expected = [
                f"{m}{row}" for id_ in split.ids for row in range(60) if groups[m][row] == int(id_.removeprefix("id-"))
            ]
            assert list(items.values) == expected
            assert np.all(np.diff(items.groups) >= 0)
            owners = [split.ids[g] for g in items.groups]
            assert owners == [ids[groups[m][int(value[1:])]] for value in items.values]
        seen = [
            any(
                prints[m][row] in {p for p, g in zip(prints[m], groups[m], strict=True) if homes[g] == "train"}
                for m in groups
                for row in range(60)
                if ids[groups[m][row]] == id_
            )
            for id_ in split.ids
        ]
        assert split.seen.tolist() == seen
    assert not all(splits["test"].seen.tolist())


@pytest.mark.parametrize(
    ("text", "path", "suffix", "query"),
    [
        ("pairs.csv", "pairs.csv", ".csv", None),
        ("a?b/pairs.CSV", "a?b/pairs.CSV", ".csv", None),
        ("x.tar/pairs.jsonl?text=a b", "x.tar/pairs.jsonl", ".jsonl", {"text": "a b"}),
        ("p.parquet?image=is+it%3F.csv&id=b%26c", "p.parquet", ".parquet", {"image": "is it?.csv", "id": "b&c"}),
        ("p.parquet?text=a&image=b.csv", "p.parquet", ".parquet", {"text": "a", "image": "b.csv"}),
        ("s-{00..11}.tar?image=jpg;png&text=txt", "s-{00..11}.tar", ".tar", {"image": "jpg;png", "text": "txt"}),
    ],
)
def test_names_are_taken_apart(text: str, path: str, suffix: str, query: dict[str, str] | None) -> None:
    name = parse_data_name(text)
    assert name is not None
    assert (name.text, name.path, name.suffix, name.query) == (text, path, suffix, query)


@pytest.mark.parametrize("text", ["glyphs", "folder", "pairs.csv.gz", "shards.tar.gz", ".csv", ""])
def test_other_names_are_none_of_tables_and_shards(text: str) -> None:
    assert parse_data_name(text) is None


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "key=value"),
        ("image", "key=value"),
        ("image=&text=b", "key=value"),
        ("image=a&&text=b", "key=value"),
        ("image=a&image=b", "names image more than once"),
        ("Image=a&text=b", "'Image'"),
    ],
)
def test_a_malformed_query_is_a_usage_error(query: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_data_name(f"pairs.csv?{query}")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["glyph", "", "pairs.tsv", "none/", "folder?image=a&text=b"])
def test_an_unknown_name_is_a_usage_error_that_lists_all_forms(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset(name, tmp_path)
    for form in ("glyphs", ".csv", ".jsonl", ".parquet", ".tar", ".npy", ".safetensors", f"got {name!r}"):
        assert form in str(caught.value)
