"""The proof on retrieval: its tasks ask what they say, it goes on where it stopped, and it draws what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bench.quality.packed import packed
from bench.quality.report import ResultStore
from bench.quality.retrieval import cli
from bench.quality.retrieval.glyph_tasks import glyph_albums
from bench.quality.retrieval.job import Budget
from bench.quality.retrieval.registry import tasks
from bench.quality.retrieval.sources import InMemoryFeatures, JoinedFeatures
from bench.quality.retrieval.summary import summarize
from bench.quality.retrieval.tasks import ITEM, QUERY, Task
from bench.quality.retrieval.variants import variants
from fluxtalk.datasets import default_cache_dir
from fluxtalk.errors import ArtifactError, TrainingError
from fluxtalk.model.encoders import Features

CHARACTERS = 36


class Ragged:
    """A feature source whose items have different lengths."""

    dim = 3

    def __init__(self, lengths: list[int]) -> None:
        generator = torch.Generator().manual_seed(0)
        # Half precision keeps these as they are.
        self.items = [torch.randint(-8, 8, (n, self.dim), generator=generator).float() for n in lengths]

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, rows: np.ndarray) -> Features:
        each = [self.items[row] if row >= 0 else torch.zeros(0, self.dim) for row in rows]
        mask = torch.zeros(len(rows), max(1, *map(len, each)), dtype=torch.bool)
        features = torch.zeros(*mask.shape, self.dim)
        for row, values in enumerate(each):
            mask[row, : len(values)] = True
            features[row, : len(values)] = values
        return Features(features, mask)


def test_joined_features_stand_one_after_the_other() -> None:
    parts = Ragged([2, 0, 3, 1])
    joined = JoinedFeatures(parts, [[2, 0], [1], [3, 3, 1]])
    features, mask = joined.batch(np.array([2, -1, 0, 1]))
    expected = [torch.cat([parts.items[3]] * 2), None, torch.cat([parts.items[2], parts.items[0]]), None]
    assert mask.sum(dim=1).tolist() == [2, 0, 5, 0]
    for row, values in enumerate(expected):
        if values is not None:
            assert torch.equal(features[row][mask[row]], values)
    assert (features[~mask] == 0).all()
    nothing, none = joined.batch(np.array([-1]))
    assert nothing.shape == (1, 1, 3)
    assert not none.any()


def test_features_in_memory_are_those_of_the_source() -> None:
    source = Ragged([2, 1, 3, 1, 2])
    rows = np.array([4, -1, 0, 2])
    expected, mask = source.batch(rows)
    features, present = InMemoryFeatures(source, at_once=2).batch(rows)
    assert torch.equal(features, expected)
    assert torch.equal(present, mask)


@pytest.fixture(scope="module")
def task(cache_dir: Path) -> Task:
    return glyph_albums(cache_dir, CHARACTERS)


def test_albums_hold_unseen_characters_and_every_query_has_one_answer(task: Task) -> None:
    for searches in (task.validation, task.test):
        assert set(searches) == {"all", "some", "one"}
        for kind, search in searches.items():
            albums, asked = search.groups[ITEM], search.groups[QUERY]
            assert len(set(albums)) == len(albums)
            assert len(set(asked)) == len(asked)
            items, texts = (search.sources[m].batch(search.counted[m])[1].sum(dim=1) for m in (ITEM, QUERY))
            assert len(items) == len(albums)
            assert len(texts) == len(asked)
            # 16 feature vectors each picture, of two to six.
            assert set((items // 16).tolist()) <= {2, 3, 4, 5, 6}
            assert (items % 16 == 0).all()
            if kind == "one":
                assert float(texts.float().mean()) < float(
                    task.train.sources[QUERY].batch(np.arange(64))[1].sum(dim=1).float().mean()
                )


@pytest.fixture(scope="module")
def results(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    done = quick(folder, cache_dir, "--draw", "--pictures", str(folder))
    assert done.exit_code == 0, done.output
    assert "register tokens, side by side, k = 8" in done.output
    return folder


def quick(folder: Path, cache_dir: Path, *more: str) -> Any:
    arguments = [
        "--task",
        "glyph-albums",
        "--steps",
        "2",
        "--seeds",
        "1",
        "--characters",
        str(CHARACTERS),
        "--workers",
        "0",
    ]
    heads = [word for name in ("concat", "matryoshka", "mlp-1") for word in ("--variant", name)]
    places = ["--results", str(folder), "--cache-dir", str(cache_dir)]
    return CliRunner().invoke(cli.main, [*arguments, *heads, *places, *more], catch_exceptions=False)


def test_results_say_recall_by_size_and_differences_at_equal_bytes(results: Path) -> None:
    text = (results / "retrieval-glyph-albums.json").read_text()
    content = json.loads(text)
    assert content["bytes"]["concat"] == content["bytes"]["matryoshka"] == {"1": 256, "2": 512, "4": 1024, "8": 2048}
    assert set(content["recall"]["mlp-1"]["one"]["text->image"]) == {"1"}
    pairs = {(row["other"], row["bytes"]) for row in content["differences"]}
    assert pairs == {("mlp-1", 256), *(("matryoshka", size) for size in (256, 512, 1024, 2048))}
    # Nothing of the machine but what the figures depend on.
    assert str(results) not in text
    assert np.asarray(Image.open(results / "quality-glyph-albums.png").convert("L")).std() > 10


def test_again_repeats_nothing(results: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((results / "retrieval-glyph-albums.json").read_text())

    def refuse(*_: object) -> None:
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr(cli, "run_and_write", refuse)
    assert quick(results, cache_dir).exit_code == 0
    after = json.loads((results / "retrieval-glyph-albums.json").read_text())
    assert after["recall"] == before["recall"]
    assert after["tuned"] == before["tuned"]


def test_a_process_finds_what_is_found_here(results: Path, cache_dir: Path, tmp_path: Path) -> None:
    known = tasks(cache_dir=str(cache_dir), characters=CHARACTERS)
    budget, weights = Budget(steps=2), default_cache_dir(str(cache_dir)) / "quality"
    places = {"cache_dir": str(cache_dir), "characters": CHARACTERS}
    store = ResultStore(tmp_path / "results.json")
    runner = cli.Runner("glyph-albums", budget, store, weights, places, 1, known["glyph-albums"]())
    here = json.loads((results / "retrieval-glyph-albums.json").read_text())
    job = runner.plan(variants()["mlp-1"], 0, here["tuned"]["mlp-1"], True)
    assert runner.results([job])[0]["test"] == here["runs"][job.name]["result"]["test"]


def test_a_failed_run_is_one_sentence(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho noise >&2; echo 'error: No space.' >&2; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("bench.quality.retrieval.cli.sys.executable", str(program))
    known = tasks(cache_dir=str(cache_dir), characters=CHARACTERS)
    with pytest.raises(TrainingError, match=r"ended with status 3 \(No space\); start the benchmark again"):
        cli.run_task("glyph-albums", known, ["mlp-1"], 1, 2, 1, tmp_path, {})


def test_every_head_of_a_size_is_compared_at_that_size() -> None:
    sizes = {name: [head.bytes_per_item(k) for k in head.counts] for name, head in variants().items()}
    assert sizes["concat"] == sizes["maxsim"] == sizes["matryoshka"]
    for name in ("linear", "mlp", "attention-pool", "separate"):
        assert sizes[f"{name}-1"] == sizes["concat"][:1]
        assert sizes[f"{name}-8"] == sizes["concat"][-1:]


def test_a_difference_is_that_of_the_queries_that_were_found() -> None:
    def run(found: list[bool]) -> dict[str, Any]:
        flags = packed(np.array(found))
        hits = {str(k): flags for k in (1, 2, 4, 8)}
        recall = {"text->image": {k: {"1": 0.0, "10": float(np.mean(found))} for k in hits}}
        return {"test": {"all": {"recall": recall, "hits": {"text->image": hits}, "queries": {"text->image": 40}}}}

    better, worse = [True] * 30 + [False] * 10, [True] * 20 + [False] * 20
    summary = summarize({"concat": [run(better)] * 2, "matryoshka": [run(worse)] * 2}, {}, "glyph-albums")
    row = summary["differences"][0]
    assert row["difference"] == pytest.approx(0.25)
    assert 0.1 < row["low"] < 0.25 < row["high"]
    assert row["not_below"]
    turned = summarize({"concat": [run(worse)] * 2, "matryoshka": [run(better)] * 2}, {}, "glyph-albums")
    assert not turned["differences"][0]["not_below"]


def test_store_keeps_each_run_and_notices_other_options(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    ResultStore(path).put("a/0", "one", {"x": 1})
    ResultStore(path).put("b/0", "one", {"x": 2})
    again = ResultStore(path)
    assert again.get("a/0", "one") == {"x": 1}
    assert again.get("a/0", "other") is None
    assert again.get("c/0", "one") is None
    again.finish(["b/0"], {"total": 2})
    assert json.loads(path.read_text()) == {"total": 2, "runs": {"b/0": {"fingerprint": "one", "result": {"x": 2}}}}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"runs": 3}'])
def test_store_refuses_another_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match="is not a results file"):
        ResultStore(path)
