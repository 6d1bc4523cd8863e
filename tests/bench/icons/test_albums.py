"""Albums, scenes and spoken names made of a data set."""

from __future__ import annotations

import io
import itertools
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from PIL import Image

from bench.icons.albums import Album, AlbumPlan, album_rows, compose, join_names
from bench.icons.build import build
from bench.icons.cli import main
from bench.icons.scenes import SIDE, places
from bench.icons.speech import SpeechPlan, choose, make_rows, speak
from bench.icons.tables import Member, read_members
from fluxtalk.datasets import load_dataset
from fluxtalk.errors import DataError
from tests.bench.icons.conftest import TINY

PLAN = AlbumPlan(train=60, validation=20, test=20)


def members(counts: dict[str, int]) -> list[Member]:
    return [
        Member(f"{split}{i}", split, f"pictures/{style}/{split}{i}.png", f"{split} {i}", style, style != "apple")
        for split, count in counts.items()
        for i in range(count)
        for style in ("google", "apple", "mdi")
    ]


MEMBERS = members({"train": 90, "validation": 45, "test": 60})


@pytest.mark.parametrize("unseen", ["combinations", "things"])
def test_held_out_albums_are_new(unseen: str) -> None:
    albums = compose(MEMBERS, AlbumPlan(unseen, train=60, validation=20, test=20))
    assert len({album.things for album in albums}) == len(albums)
    assert {2 <= len(album.things) == len(album.members) <= 6 for album in albums} == {True}
    homes = {(album.split, member.split) for album in albums for member in album.members}
    own = {("train", "train"), ("validation", "validation"), ("test", "test")}
    assert homes == (own if unseen == "things" else {(split, "train") for split, _ in own})
    # Validation has 45 things: 15 albums at most, so that queries for one thing have an answer.
    held_out = 15 if unseen == "things" else 20
    assert Counter(album.split for album in albums) == {"train": 60, "validation": held_out, "test": 20}
    assert {member.style for album in albums for member in album.members} == {"google", "apple"}


def test_only_pictures_that_may_be_shown() -> None:
    albums = compose(MEMBERS, AlbumPlan(train=20, validation=5, test=5, emoji_only=False, shown_only=True))
    assert {member.style for album in albums for member in album.members} == {"google", "mdi"}


def test_every_held_out_query_has_one_answer() -> None:
    albums = compose(MEMBERS, PLAN)
    by_id = {album.id: album for album in albums}
    rows = album_rows(albums, 0)
    for row in rows:
        album = by_id[row["id"]]
        named = {member.thing for member in album.members if _names(row["text"], member.name)}
        assert len(named) == {"all": len(album.members), "one": 1}.get(row["query_kind"], len(named))
        if row["query_kind"] == "some":
            assert 2 <= len(named) < len(album.members)
        if album.split != "train":
            assert [a.id for a in albums if a.split == album.split and named <= a.things] == [album.id]
    kinds = Counter((row["split"], row["query_kind"]) for row in rows)
    assert kinds["train", "all"] == kinds["train", "one"] == 60
    assert kinds["test", "one"] >= 5


def _names(text: str, name: str) -> bool:
    return name in text.replace(" and ", ", ").split(", ")


def test_an_album_depends_on_its_number_alone() -> None:
    assert compose(MEMBERS, PLAN) == compose(MEMBERS, PLAN)
    more = compose(MEMBERS, AlbumPlan(train=80, validation=20, test=20))
    assert more[: len(more) - 20] == compose(MEMBERS, PLAN)


def test_too_few_things_are_said() -> None:
    with pytest.raises(
        DataError, match=r"The split train has 5 things, too few for so many different albums of 2 to 6"
    ):
        compose(members({"train": 5, "validation": 9, "test": 9}), AlbumPlan("things", 3, 3, 3))


def test_lists_in_words() -> None:
    assert join_names(["cat"]) == "cat"
    assert join_names(["cat", "dog", "fox"]) == "cat, dog and fox"


@pytest.mark.parametrize("count", [2, 6])
def test_things_in_a_scene_do_not_touch(count: int) -> None:
    for seed in range(50):
        placed = places(count, random.Random(seed))
        assert len(placed) == count
        for (x, y, side), (u, v, other) in itertools.combinations(placed, 2):
            assert x >= u + other or u >= x + side or y >= v + other or v >= y + side
        assert all(x >= 0 and x + side <= SIDE and y >= 0 and y + side <= SIDE for x, y, side in placed)


def test_scenes_are_pictures_that_training_reads(packages: Path) -> None:
    build(packages, TINY)
    plan = ["--train", "4", "--validation", "1", "--test", "1", "--all-sets"]
    done = CliRunner().invoke(main, ["scenes", str(packages), *plan])
    # Five things are too few for six at once.
    assert done.exit_code == 1
    assert "too few for so many different albums" in done.output
    assert not (packages / "scenes-combinations.csv").exists()


def test_scenes_of_a_larger_data_set(tmp_path: Path) -> None:
    table = ["id,split,image,text,caption,name,style,set,license,shown"]
    for i in range(30):
        Image.new("RGBA", (16, 16), (255, 8 * i, 0, 255)).save(tmp_path / f"{i}.png")
        table.append(f"t{i},train,{i}.png,thing {i},name,thing {i},google,google,Apache-2.0,yes")
    (tmp_path / "icons.csv").write_text("\n".join(table) + "\n")
    plan = ["--train", "6", "--validation", "3", "--test", "3"]
    for _ in range(2):  # a second call replaces the first
        done = CliRunner().invoke(main, ["scenes", str(tmp_path), *plan], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    name = f"{tmp_path}/scenes-combinations.csv?image=image&text=text&id=id&split=split"
    data = load_dataset(name, tmp_path, {"image": "image", "text": "text"})
    assert [len(data.split(split).ids) for split in ("train", "validation", "test")] == [6, 3, 3]
    for path in (tmp_path / "scenes-combinations").iterdir():
        with Image.open(path) as scene:
            assert (scene.mode, scene.size) == ("RGB", (SIDE, SIDE))
            assert (np.asarray(scene) != 255).any(axis=-1).mean() > 0.02


def test_modalities_are_missing_in_training_alone() -> None:
    plan = SpeechPlan(train=80, validation=10, test=10, voices=2, missing=0.5)
    chosen = choose(MEMBERS, plan)
    assert Counter(member.split for member in chosen) == {"train": 80, "validation": 10, "test": 10}
    rows = make_rows(chosen, plan)
    assert rows == make_rows(chosen, plan)
    lacking = {row["id"]: [m for m in ("image", "text", "audio") if not row[m]] for row in rows}
    assert {len(missing) for missing in lacking.values()} == {0, 1}
    assert 25 <= sum(map(len, lacking.values())) <= 55
    assert not any(missing for id_, missing in lacking.items() if not id_.startswith("train"))
    assert {m for missing in lacking.values() for m in missing} == {"image", "text", "audio"}
    voices = Counter(row["id"] for row in rows if row["audio"])
    assert set(voices.values()) == {2}


def test_a_name_is_spoken() -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    sounds = [soundfile.read(io.BytesIO(speak("light bulb", voice))) for voice in ("en-us", "en-gb+f2")]
    assert {rate for _, rate in sounds} == {16_000}
    for samples, _ in sounds:
        assert samples.ndim == 1
        assert 0.3 < len(samples) / 16_000 < 3
        assert abs(samples).max() > 0.1
    assert len(sounds[0][0]) != len(sounds[1][0])


def test_speech_without_espeak_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    done = CliRunner().invoke(main, ["speech", str(tmp_path)])
    assert done.exit_code == 1
    assert "Spoken names need espeak-ng, which is not on PATH; apt-get install espeak-ng." in done.output


def test_without_a_data_set_the_command_that_builds_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"build the data set first: python -m bench\.icons build -o"):
        read_members(tmp_path)


def test_an_album_knows_its_things() -> None:
    assert Album("a", "train", tuple(MEMBERS[:3])).things == {"train0"}
