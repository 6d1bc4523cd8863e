"""The picture of `fluxtalk compare`: what it shows, and what it says when it cannot be drawn."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.results.test_compare import foreign_run, our_run, run


def test_the_plot_shows_every_run_and_says_what_it_shows(tmp_path: Path) -> None:
    runs = [our_run(tmp_path / "a$1"), our_run(tmp_path / "_b", scored=False), foreign_run(tmp_path / "c.jsonl")]
    done = run(*runs, "-o", tmp_path / "plot.svg", "--json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["runs"]) == 3
    # Text is drawn as outlines, each after a comment that says it.
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "plot.svg").read_text())
    for text in (
        "text → image: recall@10", "recall@10 (%)", "register tokens k", "Training loss", "optimizer step",
        "Validation score: mean of all recalls", "[1] _b: cursor, validation", "[2] c: other, validation",
    ):  # fmt: skip
        assert text in texts
    assert any(text.startswith("[1] a") for text in texts)
    assert run(*runs, "-o", tmp_path / "plot.png").exit_code == 0
    with Image.open(tmp_path / "plot.png") as picture:
        colors = {tuple(color) for color in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    # The first three colors of matplotlib's cycle: one per run.
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C)} <= colors


def test_a_plot_without_matplotlib_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = our_run(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run(a, "-o", tmp_path / "plot.png")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: A plot needs matplotlib")
    assert not (tmp_path / "plot.png").exists()
    assert run(a).exit_code == 0
