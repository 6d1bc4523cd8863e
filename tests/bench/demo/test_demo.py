"""The demo is the README's first command: what it promises is checked on what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.demo import report as demo_report
from bench.demo.cli import QUERIES
from bench.query_sheet import ANSWERS, Query, draw_queries
from fluxtalk.datasets import PairDataset
from fluxtalk.model.checkpoints.stage1 import load_stage1

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "bench" / "stage1" / "glyphs.pth"


def run_demo(output: Path, stage1: str) -> tuple[dict[str, Any], str]:
    """Run the demo as `make demo` does; its results.json and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.demo", "--output", str(output), "--stage1", stage1],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((output / "results.json").read_text()), done.stdout


def require_complete(output: Path, results: dict[str, Any], printed: str) -> None:
    """All that the demo promises to leave and to print."""
    for name in ("stage1.pth", "run/METADATA.txt", "bundle/manifest.json", "queries.png", "recall.png"):
        assert (output / name).is_file(), name
    for direction in ("text->image", "image->text"):
        assert set(results["recall"][direction]) == {"1", "2", "3", "4"}
        assert set(results["baseline"][direction]) == set(results["chance"][direction]) == {"1", "5", "10"}
        assert results["chance"][direction]["10"] == pytest.approx(0.01)
    assert {"stage 1", "stage 2", "baseline", "export", "index", "results"} <= set(results["seconds"])
    assert "mean-pool + linear" in printed
    assert "chance" in printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo_reaches_what_the_readme_says_and_caches_it(tmp_path: Path) -> None:
    results, printed = run_demo(tmp_path / "demo", "committed")
    require_complete(tmp_path / "demo", results, printed)
    by_k = results["recall"]["text->image"]
    assert by_k["3"]["10"] >= 0.55
    assert by_k["1"]["10"] >= 0.9 * by_k["3"]["10"]
    assert by_k["3"]["10"] > results["baseline"]["text->image"]["10"]
    # What was exported scores as what was trained.
    for k in ("1", "3"):
        assert by_k[k]["10"] == pytest.approx(results["recall_in_training"]["text->image"][k]["10"], abs=0.01)
    again, printed = run_demo(tmp_path / "demo", "committed")
    assert printed.count("already there") == 6
    assert again["recall"] == results["recall"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_demo_can_train_its_own_encoders(tmp_path: Path) -> None:
    results, printed = run_demo(tmp_path / "demo", "train")
    require_complete(tmp_path / "demo", results, printed)
    assert results["recall"]["text->image"]["3"]["10"] >= 0.4


def test_committed_encoders_are_small_and_say_how_they_were_made() -> None:
    assert COMMITTED.stat().st_size <= 4_000_000
    stage1 = load_stage1(COMMITTED)
    assert stage1.data == "glyphs"
    assert str(stage1.figures["command"]).startswith("fluxtalk stage1 pretrain glyphs")
    assert {"date", "seconds", "machine", "image", "text"} <= set(stage1.figures)
    assert stage1.modalities["image"].build().encoder.grid ** 2 <= 16  # type: ignore[operator]


def test_demo_queries_are_held_out_characters(glyph_data: PairDataset) -> None:
    held_out = set(glyph_data.split("test").items["text"].values)
    assert set(QUERIES) <= held_out


def test_pictures_show_what_they_are_given(tmp_path: Path) -> None:
    blank, full = np.zeros((32, 32), np.uint8), np.full((32, 32), 255, np.uint8)
    queries = [
        Query(name, [255 - image] * ANSWERS, [False] * ANSWERS) for name, image in (("blank", blank), ("full", full))
    ]
    draw_queries(queries, tmp_path / "queries.png")
    ink = np.asarray(Image.open(tmp_path / "queries.png").convert("L")) < 32
    half = len(ink) // 2
    # Glyphs are white on black and drawn as ink on paper: the second row is full of it, the first is not.
    assert ink[half:].mean() > 0.3 > ink[:half].mean()
    cutoffs = {"1": 0.1, "5": 0.2, "10": 0.3}
    both = ("text->image", "image->text")
    results = {
        "recall": {d: {str(k): cutoffs for k in range(1, 5)} for d in both},
        "baseline": dict.fromkeys(both, cutoffs),
        "chance": dict.fromkeys(both, cutoffs),
    }
    demo_report.draw_recall(results, tmp_path / "recall.png")
    assert np.asarray(Image.open(tmp_path / "recall.png").convert("L")).std() > 5
