"""Items that cannot be used: what reading passes on, what is left out, and the report of it; gaps are none of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxtalk.datasets import load_dataset, load_recorded
from fluxtalk.datasets.bad_items import BadItem, BadItemPolicy, read_report, write_report
from fluxtalk.datasets.left_out import leave_out
from fluxtalk.errors import ArtifactError, DataError, UsageError
from tests.datasets.shard_files import write_shard

KINDS = {"image": "image", "text": "text"}
REPORT = Path("bad_items.jsonl")


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def table(folder: Path, rows: int = 200) -> Path:
    """A table of one id per row, all in the training split but every tenth."""
    lines = ["image,text,split"]
    for row in range(rows):
        (folder / f"{row}.png").write_bytes(png(row))
        lines.append(f"{row}.png,caption {row},{'train' if row % 10 else 'validation'}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def bad(row: int, modality: str = "image", split: str = "train") -> BadItem:
    return BadItem(f"{row}.png", "it is broken", modality, split, row, str(row))


def test_fail_lists_up_to_twenty_and_skip_needs_a_second_word_above_its_limit() -> None:
    items, totals = [bad(row) for row in range(25)], {"image": 2500, "text": 2500}
    failing = BadItemPolicy().refusal(items, totals, "The data set x", REPORT)
    assert failing is not None
    assert failing.startswith("The data set x has 25 of 5000 items that cannot be used: 0.png (it is broken); 1.png")
    assert "19.png (it is broken), and 5 more; bad_items.jsonl lists all" in failing
    assert failing.endswith("--on-bad-item skip.")
    assert BadItemPolicy("skip").refusal(items, totals, "x", REPORT) is None
    above = BadItemPolicy("skip").refusal(items, {**totals, "image": 2499}, "x", REPORT)
    assert above is not None
    assert above.endswith(
        "1.0% of image is more than the 1.0% of --bad-items-limit, which has to be raised to leave them out."
    )
    assert BadItemPolicy("skip", 0.02).refusal(items, {**totals, "image": 2499}, "x", REPORT) is None
    assert BadItemPolicy().refusal([], totals, "x", REPORT) is None


@pytest.mark.parametrize(("action", "limit"), [("ignore", 0.01), ("skip", -0.1), ("skip", 1.5), ("skip", float("nan"))])
def test_a_policy_that_means_nothing_is_refused(action: str, limit: float) -> None:
    with pytest.raises(UsageError, match=r"--on-bad-item|--bad-items-limit"):
        BadItemPolicy(action, limit)


def test_a_report_is_read_back_and_nothing_else_is(tmp_path: Path) -> None:
    write_report(tmp_path / "deep" / REPORT, "pairs.csv", "hash", [bad(1), bad(2)])
    assert read_report(tmp_path / "deep" / REPORT) == ("hash", (bad(1), bad(2)))
    (tmp_path / "other").write_text('{"format": "other"}\n')
    for name in ("other", "none"):
        with pytest.raises(ArtifactError, match="not a report of bad items"):
            read_report(tmp_path / name)


def test_what_is_left_out_takes_its_id_along_and_changes_the_hash(tmp_path: Path) -> None:
    whole = load_dataset(str(table(tmp_path, 20)), tmp_path, KINDS)
    part = whole.splits["train"]
    smaller = leave_out(whole, [bad(3), bad(0, split="validation")])
    train = smaller.splits["train"]
    assert train.ids == (*part.ids[:3], *part.ids[4:])
    assert [Path(value).name for value in train.items["image"].values] == [
        Path(value).name for row, value in enumerate(part.items["image"].values) if row != 3
    ]
    assert len(train.items["text"]) == len(train.ids) == 17
    assert train.items["image"].groups.tolist() == list(range(17))
    assert len(smaller.splits["validation"].ids) == 1
    assert smaller.left_out is not None
    assert smaller.left_out.facts() == {"items": {"image": 2}, "ids": 2}
    assert smaller.left_out.rows["train"]["text"].tolist() == [row for row in range(18) if row != 3]
    assert smaller.whole is whole
    assert len({whole.content_hash, smaller.content_hash, leave_out(whole, [bad(4)]).content_hash}) == 3
    assert leave_out(whole, []) is whole


def test_an_id_with_another_item_left_is_kept(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("image,text,id\na.png,one,x\na.png,two,x\nb.png,three,y\n")
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(1))
    whole = load_dataset(str(tmp_path / "pairs.csv"), tmp_path, KINDS)
    (home,) = (name for name, split in whole.splits.items() if "x" in split.ids)
    rows = [row for row, value in enumerate(whole.splits[home].items["text"].values) if value == "one"]
    smaller = leave_out(whole, [bad(rows[0], "text", home)])
    assert "x" in smaller.splits[home].ids
    assert list(smaller.splits[home].items["text"].values)[:1] != ["one"]


def test_a_recorded_data_set_is_read_without_what_was_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, 20)
    whole = load_dataset(str(path), tmp_path, KINDS)
    smaller = leave_out(whole, [bad(3)])
    write_report(tmp_path / REPORT, whole.name, whole.content_hash, [bad(3)])
    assert load_recorded(str(path), tmp_path, KINDS, tmp_path / REPORT).content_hash == smaller.content_hash
    assert load_recorded(str(path), tmp_path, KINDS, tmp_path / "none").content_hash == whole.content_hash
    (tmp_path / "1.png").write_bytes(png(99))  # other data: nothing of it was left out
    assert load_recorded(str(path), tmp_path, KINDS, tmp_path / REPORT).left_out is None


def test_missing_files_and_malformed_rows_of_a_table_are_passed_on_up_to_a_share(tmp_path: Path) -> None:
    path = table(tmp_path)
    (tmp_path / "7.png").unlink()
    with path.open("a") as file:
        file.write("8.png\n")
    with pytest.raises(DataError, match="1 malformed of 201 rows: line 202"):
        load_dataset(str(path), tmp_path, KINDS)
    data = load_dataset(str(path), tmp_path, KINDS, tolerated=0.01)
    assert sum(len(split.items["image"]) for split in data.splits.values()) == 200
    assert [item.reason for item in data.bad_rows] == ["1 cells for 3 columns"]
    for row in range(10, 15):
        (tmp_path / f"{row}.png").unlink()
    with pytest.raises(DataError, match="names 6 of 200 files that do not exist"):
        load_dataset(str(path), tmp_path, KINDS, tolerated=0.01)


def test_blank_captions_and_lone_files_are_gaps_with_a_note(tmp_path: Path) -> None:
    members = [(f"{i:03}.png", png(i)) for i in range(50)] + [("900.png", png(1)), ("901.json", b"{}")]
    captions = {i: b" \n" if i in (7, 8) else "\u200b".encode() if i == 9 else b"caption %d" % i for i in range(50)}
    ordered = sorted([*members, *((f"{i:03}.txt", text) for i, text in captions.items())])
    write_shard(tmp_path / "s.tar", ordered)
    data = load_dataset(str(tmp_path / "s.tar"), tmp_path, KINDS)
    assert sum(len(split.ids) for split in data.splits.values()) == 47
    assert data.notes[0].startswith("5 of 52 ids have items in fewer than two modalities, are in no pair")
    lines = [f"{i:03}.png,{text.decode().strip()}" for i, text in captions.items()]
    for name, content in members:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text", *lines]) + "\n", encoding="utf-8")
    data = load_dataset(str(tmp_path / "pairs.csv"), tmp_path, KINDS)
    assert sum(len(split.ids) for split in data.splits.values()) == 47
    assert "3 of 50 ids" in data.notes[0]
    assert "line 9, line 10, line 11" in data.notes[0]


def test_all_unreadable_members_of_shards_are_listed_or_passed_on(tmp_path: Path) -> None:
    members = []
    for i in range(100):
        text = b"caf\xe9" if i in (3, 4) else b"caption %d" % i
        members += [(f"{i:03}.png", png(i)), (f"{i:03}.txt", text)]
    write_shard(tmp_path / "s.tar", members)
    with pytest.raises(DataError, match=r"has 2 unusable of 200 members: 003\.txt.*, 004\.txt"):
        load_dataset(str(tmp_path / "s.tar"), tmp_path, KINDS)
    data = load_dataset(str(tmp_path / "s.tar"), tmp_path, KINDS, tolerated=0.01)
    assert sum(len(split.items["text"]) for split in data.splits.values()) == 100


def test_unusable_arrays_of_a_folder_of_features_are_passed_on(tmp_path: Path) -> None:
    for modality in ("left", "right"):
        (tmp_path / "data" / modality).mkdir(parents=True)
        for i in range(60):
            np.save(tmp_path / "data" / modality / f"{i}.npy", np.full((2, 3), i, np.float32))
    np.save(tmp_path / "data" / "left" / "7.npy", np.full((2, 3), np.nan, np.float32))
    with pytest.raises(DataError, match="1 unusable arrays of 120"):
        load_dataset(str(tmp_path / "data"), tmp_path)
    data = load_dataset(str(tmp_path / "data"), tmp_path, tolerated=0.01)
    assert sum(len(split.items["left"]) for split in data.splits.values()) == 60
