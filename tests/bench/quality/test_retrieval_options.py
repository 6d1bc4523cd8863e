"""The proof of options: each is trained as it says, and a second call repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.quality.retrieval import options


def test_every_option_is_trained_and_compared_at_every_size(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "OPTIONS", {n: o for n, o in options.OPTIONS.items() if n != "nested-dims"})
    output = tmp_path / "options.json"
    arguments = ["--task", "glyph-albums", "--characters", "36", "--steps", "4", "--seeds", "1", "-o", str(output)]
    done = CliRunner().invoke(options.main, [*arguments, "--cache-dir", str(cache_dir)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    content = json.loads(output.read_text())
    runs = {name: run["result"] for name, run in content["runs"].items()}
    assert set(runs) == {"recipe/0", "hard-negatives/0", "sweep/0"}
    # Mined neighbors change the batches of later epochs; the sweep tried nine candidates, and chose one.
    assert runs["hard-negatives/0"]["test"] != runs["recipe/0"]["test"]
    assert "9 of 9 tried" in done.output
    for result in content["results"].values():
        sizes = {kind: {w: set(by_k) for w, by_k in by_width.items()} for kind, by_width in result["test"].items()}
        assert sizes == {k: {w: {"1", "2", "4", "8"} for w in ("16", "32", "64")} for k in ("all", "some", "one")}
    assert "| the recipe | 8 x 16 | 512 |" in done.output

    def refuse(*_: object) -> None:
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr(options, "run_option", refuse)
    again = CliRunner().invoke(options.main, [*arguments, "--cache-dir", str(cache_dir)], catch_exceptions=False)
    assert again.exit_code == 0
    assert json.loads(output.read_text())["results"] == content["results"]
