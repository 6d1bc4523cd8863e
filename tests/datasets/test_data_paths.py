"""Names of data sets, seen from one folder or another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fluxtalk.datasets.data_paths import first_existing, with_absolute_path, with_relative_path

NAMES = {
    "table": ("pairs.csv", "/project/pairs.csv", "../../pairs.csv"),
    "query": (
        "a/p.jsonl?image=x.png&text=y",
        "/project/a/p.jsonl?image=x.png&text=y",
        "../../a/p.jsonl?image=x.png&text=y",
    ),
    "shards": (
        "../s-{00..09}.tar?text=txt&a=b",
        "/s-{00..09}.tar?text=txt&a=b",
        "../../../s-{00..09}.tar?text=txt&a=b",
    ),
    "folder": ("features/", "/project/features", "../../features"),
    "absolute": ("/data/p.parquet", "/data/p.parquet", "../../../data/p.parquet"),
    "built-in": ("glyphs", "glyphs", "glyphs"),
}


@pytest.mark.parametrize(("name", "absolute", "relative"), NAMES.values(), ids=NAMES)
def test_only_the_path_of_a_name_is_told_anew(name: str, absolute: str, relative: str) -> None:
    """Its query, its braces and the built-in data set stay; from either form the other is found again."""
    assert with_absolute_path(name, Path("/project")) == absolute
    assert with_relative_path(absolute, Path("/project/runs/mine")) == relative
    assert with_absolute_path(relative, Path("/project/runs/mine")) == absolute


def test_the_first_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.csv").touch()
    (tmp_path / "s-01.tar").touch()
    (tmp_path / "features").mkdir()
    there = ["pairs.csv?a=b", "s-{00..01}.tar", "features", "glyphs", str(tmp_path / "pairs.csv")]
    for name in there:
        assert first_existing(["gone.csv", "s-{02..03}.tar", "nowhere", name, "pairs.csv"]) == name
    assert first_existing(["gone.csv", "nowhere"]) is None
    assert with_absolute_path("pairs.csv") == os.path.join(os.getcwd(), "pairs.csv")
