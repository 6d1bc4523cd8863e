"""Tables of pairs: which rows belong together, which tables are refused, and that a refusal names the thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxtalk.datasets import PairDataset, load_dataset
from fluxtalk.errors import DataError


def _table(folder: Path, text: str, encoding: str = "utf-8") -> PairDataset:
    path = folder / "pairs.csv"
    path.write_bytes(text.encode(encoding))
    return load_dataset(str(path), folder)


def _refused(folder: Path, text: str) -> str:
    with pytest.raises(DataError) as caught:
        _table(folder, text)
    assert str(folder / "pairs.csv") in str(caught.value)
    return str(caught.value)


def _png(path: Path, shade: int) -> None:
    Image.fromarray(np.full((4, 4), shade, dtype=np.uint8)).save(path)


def test_ids_splits_and_values_are_those_of_the_columns(tmp_path: Path) -> None:
    for shade in (1, 2, 3):
        _png(tmp_path / f"{shade}.png", shade)
    data = _table(
        tmp_path,
        "image,text,id,split\n1.png,a dog,dog,train\n1.png,a brown dog,dog,train\n2.png,tea,tea,test\n"
        "3.png,a cat,cat,train\n",
    )
    train = data.split("train")
    assert data.modalities == ("image", "text")
    assert train.ids == ("dog", "cat")
    # The photograph of two captions is one item; the captions are two.
    assert train.items["image"].values == [tmp_path / "1.png", tmp_path / "3.png"]
    assert train.items["image"].groups.tolist() == [0, 1]
    assert train.items["text"].values == ["a dog", "a brown dog", "a cat"]
    assert train.items["text"].groups.tolist() == [0, 0, 1]
    assert data.split("test").ids == ("tea",)
    with pytest.raises(DataError, match=r"no validation items; it has train, test"):
        data.split("validation")


def test_captions_of_one_image_need_not_stand_together(tmp_path: Path) -> None:
    data = _table(tmp_path, "title,caption,id\na,one,x\nb,two,y\na,three,x\n")
    split = next(split for split in data.splits.values() if "x" in split.ids)
    x = split.ids.index("x")
    captions = split.items["caption"]
    assert [captions.values[i] for i in np.flatnonzero(captions.groups == x)] == ["one", "three"]
    assert np.all(np.diff(captions.groups) >= 0)


def test_rows_that_share_a_cell_get_one_id_transitively(tmp_path: Path) -> None:
    # 0-1 share the title, 1-3 the caption, 3-5 the title; 2 and 4 stand alone.
    rows = ["a,one", "a,two", "z,nine", "b,two", "y,eight", "b,three"]
    data = _table(tmp_path, "title,caption,split\n" + "".join(f"{row},train\n" for row in rows))
    train = data.split("train")
    assert len(train.ids) == 3
    captions = train.items["caption"]
    linked = {frozenset(captions.values[i] for i in np.flatnonzero(captions.groups == g)) for g in range(3)}
    assert linked == {frozenset(("one", "two", "three")), frozenset(("nine",)), frozenset(("eight",))}


def test_a_cell_links_within_its_own_column_only(tmp_path: Path) -> None:
    data = _table(tmp_path, "title,caption,split\nsame,one,train\ntwo,same,train\n")
    assert len(data.split("train").ids) == 2


def test_linking_equals_connected_components(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [(int(a), int(b)) for a, b in rng.integers(0, 60, (70, 2))]
    data = _table(tmp_path, "title,caption,split\n" + "".join(f"t{a},c{b},train\n" for a, b in pairs))
    # The slow reference: grow sets until nothing changes.
    groups = [{("t", a), ("c", b)} for a, b in pairs]
    merged = True
    while merged:
        merged = False
        for i in range(len(groups)):
            for j in range(len(groups) - 1, i, -1):
                if groups[i] & groups[j]:
                    groups[i] |= groups.pop(j)
                    merged = True
    train = data.split("train")
    assert len(train.ids) == len(groups)
    for g in range(len(train.ids)):
        members = {
            (kind[0], int(train.items[kind].values[i][1:]))
            for kind in ("title", "caption")
            for i in np.flatnonzero(train.items[kind].groups == g)
        }
        assert members in groups


def test_without_a_split_column_ids_are_divided_by_their_hash(tmp_path: Path) -> None:
    rows = [f"title {i},caption {i},id-{i}\n" for i in range(3000)]
    data = _table(tmp_path, "title,caption,id\n" + "".join(rows))
    sizes = {name: len(split.ids) for name, split in data.splits.items()}
    # Three standard deviations of a binomial draw.
    assert abs(sizes["train"] - 2400) < 66
    assert abs(sizes["validation"] - 300) < 50
    assert abs(sizes["test"] - 300) < 50
    homes = {id_: name for name, split in data.splits.items() for id_ in split.ids}
    assert len(homes) == 3000
    # An id stays where it is, whatever else the table holds.
    fewer = _table(tmp_path, "title,caption,id\n" + "".join(reversed(rows[::7])))
    assert {id_: name for name, split in fewer.splits.items() for id_ in split.ids} == {
        f"id-{i}": homes[f"id-{i}"] for i in range(0, 3000, 7)
    }


def test_seen_compares_content_and_not_names(tmp_path: Path) -> None:
    for name, shade in (("train.png", 7), ("copy.png", 7), ("new.png", 8)):
        _png(tmp_path / name, shade)
    data = _table(
        tmp_path,
        "image,text,id,split\ntrain.png,one,a,train\ncopy.png,two,b,test\nnew.png,three,c,test\nnew.png,one,d,test\n",
    )
    test = data.split("test")
    assert dict(zip(test.ids, test.seen.tolist(), strict=True)) == {"b": True, "c": False, "d": True}


def test_the_content_hash_follows_content_and_split_and_not_names(tmp_path: Path) -> None:
    def hashed(name: str, shade: int, split: str) -> str:
        _png(tmp_path / name, shade)
        return _table(tmp_path, f"image,text,id,split\n{name},one,a,{split}\n").content_hash

    base = hashed("a.png", 1, "train")
    assert hashed("b.png", 1, "train") == base
    assert hashed("a.png", 2, "train") != base
    assert hashed("a.png", 1, "test") != base


@pytest.mark.parametrize(("count", "more"), [(1, ""), (20, ""), (23, " and 3 more")])
def test_missing_files_are_all_counted_and_twenty_listed(tmp_path: Path, count: int, more: str) -> None:
    _png(tmp_path / "there.png", 1)
    rows = "there.png,text there\n" + "".join(f"gone{i:02}.png,text {i}\n" for i in range(count))
    sentence = _refused(tmp_path, "image,text\n" + rows)
    assert f"{count} of {count + 1} files that do not exist" in sentence
    assert [i for i in range(count) if f"gone{i:02}.png" in sentence] == list(range(min(count, 20)))
    assert f"{more}; paths" in sentence
    assert "there.png" not in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title,caption\na,one\n,\n", "1 malformed of 2 rows: line 3 (no modality)"),
        ("title,caption\na,one\nb\n", "line 3 (1 cells for 2 columns)"),
        ("title,caption\na,one,more\n", "line 2 (3 cells for 2 columns)"),
        ('title,caption\n"a\nb",one\n\nb\n', "line 5 (1 cells"),
        ("title,caption,id\na,one, \n", "line 2 (no id)"),
        ("title,caption,split\na,one,train\nb,two,dev\n", "line 3 (split 'dev' is not one of train"),
        ("title,caption,id,split\na,one,x,train\nb,two,x,test\n", "line 3 (id 'x', in train and in test)"),
        ("title,caption,split\na,one,train\na,two,test\n", "line 3 (linked to earlier rows, in train and in test)"),
        ("title,caption,id\na,,x\n,two,y\n", "have items in fewer than two modalities"),
        ("title,id\na,x\n", "at least two modality columns"),
        (
            'title,caption\na,"one\nb,two\nc,three\n',
            "not valid CSV: unexpected end of data, in the row that ends at line 4",
        ),
        ('title,caption\na,"one"x\nb,two\n', "in the row that ends at line 2"),
        ("", "no rows"),
        ("title,caption\n", "no rows"),
        ("title,title\na,b\n", "several columns called title"),
        ("title,Big Caption\na,b\n", "'Big Caption'"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in _refused(tmp_path, text)


def test_malformed_rows_are_all_counted_and_twenty_listed(tmp_path: Path) -> None:
    sentence = _refused(tmp_path, "title,caption\na,one\n" + "b\n,\n" * 15)
    assert "30 malformed of 31 rows" in sentence
    assert [i for i in range(2, 33) if f"line {i} (" in sentence] == list(range(3, 23))
    assert "and 10 more" in sentence


def test_a_split_without_a_modality_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation split has 1 ids and no sound item"):
        _table(tmp_path, "title,caption,sound,split\na,one,x,train\nb,two,,validation\n")


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv does not exist; check --data"):
        load_dataset(str(tmp_path / "none.csv"), tmp_path)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pairs\.csv cannot be read .*UTF-8"):
        _table(tmp_path, "title,caption\ncafé,one\n", encoding="latin-1")


def test_a_folder_is_not_a_table(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(DataError, match=r"x\.csv cannot be read"):
        load_dataset(str(tmp_path / "x.csv"), tmp_path)


def test_a_byte_order_mark_is_not_part_of_the_header(tmp_path: Path) -> None:
    assert _table(tmp_path, "title,caption\na,b\n", encoding="utf-8-sig").modalities == ("title", "caption")


def test_an_empty_cell_is_a_missing_modality(tmp_path: Path) -> None:
    for shade in (1, 2):
        _png(tmp_path / f"{shade}.png", shade)
    data = _table(
        tmp_path,
        "image,text,title,id,split\n1.png,a dog,,a,train\n,tea,A cup,b,train\n2.png,  ,Rain,c,train\n,,Fog,c,train\n",
    )
    train = data.split("train")
    assert train.ids == ("a", "b", "c")
    # The image column is one of files although a cell is empty.
    assert train.items["image"].values == [tmp_path / "1.png", tmp_path / "2.png"]
    assert train.items["image"].groups.tolist() == [0, 2]
    assert train.items["text"].groups.tolist() == [0, 1]
    assert train.items["title"].values == ["A cup", "Rain", "Fog"]
    assert train.items["title"].groups.tolist() == [1, 2, 2]


def test_empty_cells_link_no_rows(tmp_path: Path) -> None:
    data = _table(tmp_path, "title,caption,sound,split\na,one,,train\nb,two,,train\n,three,x,train\n,two,y,train\n")
    train = data.split("train")
    assert len(train.ids) == 3
    assert train.items["caption"].groups.tolist() == [0, 1, 2]
    assert train.items["sound"].groups.tolist() == [1, 2]
    assert [train.items["sound"].values[i] for i in (0, 1)] == ["y", "x"]
