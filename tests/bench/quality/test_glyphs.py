"""The glyphs benchmark: its figures are what they say, it goes on where it stopped, and it draws what it found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.linear_model import LogisticRegression

from bench.markdown import markdown_table
from bench.quality.glyphs import cli as glyphs
from bench.quality.glyphs import job as glyphs_job
from bench.quality.glyphs import probe as glyphs_probe
from bench.quality.glyphs import retrieval as glyphs_retrieval
from bench.quality.glyphs import summary as glyphs_summary
from bench.quality.glyphs.variants import MAIN, variant_named, variants
from bench.quality.heads import QueryFormerHead
from bench.quality.report import ResultStore, machine_info, mean_and_deviation
from fluxtalk.config import HeadConfig
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import ArtifactError, DataError, TrainingError, UsageError
from fluxtalk.model.encoders import Features
from fluxtalk.train.config import TrainConfig


class Given:
    """A feature source of given vectors: (items, length, dim), or (items, dim) for one vector each."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = torch.from_numpy(values.astype(np.float32)).reshape(len(values), -1, values.shape[-1])
        self.dim = values.shape[-1]

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, rows: np.ndarray) -> Features:
        return Features(self.values[rows], torch.ones(len(rows), self.values.shape[1], dtype=torch.bool))


def quick(output: Path, cache_dir: Path, *more: str) -> Any:
    arguments = ["-o", str(output), "--cache_dir", str(cache_dir), "--quick", *more]
    return CliRunner().invoke(glyphs.main, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def results(cache_dir: Path, glyph_data: PairDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results and picture of `--quick --draw`, in one folder."""
    folder = tmp_path_factory.mktemp("quality")
    done = quick(folder / "glyphs.json", cache_dir, "--draw", "--picture", str(folder / "glyphs.png"))
    assert done.exit_code == 0, done.output
    assert "R@10" in done.output
    return folder


def test_quick_measures_every_variant(results: Path) -> None:
    content = json.loads((results / "glyphs.json").read_text())
    assert set(content["recall"]) == set(variants()) == {name.split("/")[0] for name in content["runs"]}
    sizes = content["bytes"]
    one = 4 * content["budget"]["dim"]
    assert sizes[MAIN] == {"1": one, "2": one, "3": one}
    for name in ("matryoshka", "aggregation=concat"):
        assert sizes[name] == {"1": one, "2": 2 * one, "3": 3 * one}
    assert sizes["query_former"] == sizes[MAIN]
    assert all(sizes[f"separate_{k}"] == {str(k): one} for k in (1, 2, 3))
    assert {"shared", "complementary", "untrained", "raw", "majority"} == set(content["probe"][MAIN])
    assert set(content["probe"]["mean_pool_linear"]) == {"shared"}
    assert [goal["met"] for goal in content["goals"]] == [not goal["missed"] for goal in content["goals"]]
    assert {row["bytes"] for row in content["equal_bytes"]} == {one, 2 * one, 3 * one}
    # Nothing of the machine but what the figures depend on.
    assert str(results) not in (results / "glyphs.json").read_text()


def test_quick_again_repeats_nothing(results: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((results / "glyphs.json").read_text())

    def refuse(*_: object) -> None:
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr(glyphs, "run_job", refuse)
    done = quick(results / "glyphs.json", cache_dir)
    assert "of which 0 are to be done" in done.output
    assert json.loads((results / "glyphs.json").read_text())["recall"] == before["recall"]


def test_picture_is_drawn(results: Path) -> None:
    assert np.asarray(Image.open(results / "glyphs.png").convert("L")).std() > 10


def test_a_process_does_what_is_done_here(results: Path, cache_dir: Path, tmp_path: Path) -> None:
    budget = glyphs_job.Budget.quick()
    job = glyphs.Job(variant_named("mean_pool_linear"), 0, "")
    (_, result), *_ = glyphs._in_processes([job], budget, str(cache_dir), 1)
    here = json.loads((results / "glyphs.json").read_text())["runs"]["mean_pool_linear/0"]["result"]
    for name in ("recall", "hits", "bytes", "parameters", "steps"):
        assert result[name] == here[name]


def test_a_failed_process_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho noise >&2; echo 'error: No space.' >&2; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("bench.quality.glyphs.cli.sys.executable", str(program))
    job = glyphs.Job(variant_named(MAIN), 0, "")
    with pytest.raises(TrainingError, match=r"The run recommended/0 ended with status 3 \(No space\); start"):
        list(glyphs._in_processes([job], glyphs_job.Budget.quick(), None, 1))


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


def test_fingerprint_follows_options_and_not_places(cache_dir: Path, tmp_path: Path) -> None:
    budget = glyphs_job.Budget.quick()
    inputs = glyphs_job.job_inputs(budget, str(cache_dir))

    def of(name: str, folder: Path, given: glyphs_job.Budget = budget) -> str:
        config = glyphs_job.job_config(variant_named(name), 0, given, folder, str(folder))
        return glyphs_job.fingerprint(config, given, inputs)

    assert of(MAIN, tmp_path) == of(MAIN, tmp_path / "elsewhere")
    assert of(MAIN, tmp_path) != of("items_per_id=2", tmp_path)
    assert of(MAIN, tmp_path) != of(MAIN, tmp_path, glyphs_job.Budget(steps=3))


def test_ablations_change_one_option_each() -> None:
    places: dict[str, Any] = {"stage1_checkpoint": "", "output_dir": "", "log_name": "x"}
    main = TrainConfig.with_recipe(MAIN, **places).to_dict()
    for name, variant in variants().items():
        if "=" in name:
            config = variant.config(**places).to_dict()
            assert [option for option in main if config[option] != main[option]] == [name.split("=")[0]]


def test_separate_models_are_trained_for_one_k_and_keep_the_complementary_token() -> None:
    places: dict[str, Any] = {"stage1_checkpoint": "", "output_dir": "", "log_name": "x"}
    main = variant_named(MAIN).config(**places)
    for k in (1, 2, 3):
        config = variant_named(f"separate_{k}").config(**places)
        assert config.num_overlapping_tokens == k
        assert config.nested_dropout_rate == 0
        complementary = main.num_register_tokens - main.num_overlapping_tokens
        assert config.num_register_tokens - k == complementary
        assert config.complementary_objective == main.complementary_objective


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(UsageError, match=f"one of {MAIN}, .*got 'other'"):
        variant_named("other")


def test_first_characters_keeps_whole_ids(glyph_data: PairDataset) -> None:
    few = glyphs_job.first_characters(glyph_data, 20)
    assert few.content_hash != glyph_data.content_hash
    for name, split in few.splits.items():
        whole = glyph_data.split(name).items["image"]
        assert split.ids == glyph_data.split(name).ids[:20]
        assert len(split.items["image"]) == (whole.groups < 20).sum() == len(split.items["image"].labels["family"])
        assert len(split.items["text"]) == len(split.seen) == 20


def test_probe_equals_logistic_regression_and_reads_what_is_there() -> None:
    rng = np.random.default_rng(0)
    labels = {factor: rng.integers(2 + 2 * (factor == "family"), size=600) for factor in glyphs_probe.FACTORS}
    vectors = rng.standard_normal((600, 8)).astype(np.float32)
    vectors[:, 0] += 3 * labels["weight"]
    data = glyphs_probe.ProbeData(
        Given(vectors),
        Given(vectors),
        np.arange(400),
        np.arange(400, 600),
        {f: v[:400] for f, v in labels.items()},
        {f: v[400:] for f, v in labels.items()},
    )
    found = glyphs_probe.accuracy(vectors[:400], vectors[400:], data)
    assert found["weight"] > 0.9
    assert found["slant"] < 0.6
    mean, deviation = vectors[:400].mean(axis=0), vectors[:400].std(axis=0)
    reference = LogisticRegression().fit((vectors[:400] - mean) / deviation, labels["family"][:400])
    expected = reference.score((vectors[400:] - mean) / deviation, labels["family"][400:])
    assert found["family"] == pytest.approx(expected, abs=0.02)
    commonest = np.bincount(labels["family"][:400]).argmax()
    assert glyphs_probe.majority(data)["family"] == pytest.approx((labels["family"][400:] == commonest).mean())


def test_probe_that_cannot_be_fitted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = {factor: rng.integers(2, size=50) for factor in glyphs_probe.FACTORS}
    vectors = rng.standard_normal((50, 20)).astype(np.float32)
    data = glyphs_probe.ProbeData(Given(vectors), Given(vectors), np.arange(50), np.arange(50), labels, labels)
    monkeypatch.setattr(glyphs_probe, "_ITERATIONS", 1)
    with pytest.raises(DataError, match="family did not converge in 1 iterations"):
        glyphs_probe.accuracy(vectors, vectors, data)


def test_packed_flags_come_back() -> None:
    flags = np.random.default_rng(0).random(1001) < 0.3
    text = glyphs_retrieval.packed(flags)
    assert len(text) < 180
    assert (glyphs_retrieval.unpacked(text, 1001) == flags).all()


def test_fewer_queries_are_run_anew(glyph_data: PairDataset) -> None:
    split = glyphs_job.first_characters(glyph_data, 30).split("test")
    rng = np.random.default_rng(0)
    sources = {m: Given(rng.standard_normal((len(items), 3, 12))) for m, items in split.items.items()}
    config = HeadConfig(
        {"image": 12, "text": 12},
        dim=16,
        heads=4,
        num_register_tokens=3,
        num_overlapping_tokens=3,
        nested_dropout_rate=0.0,
    )
    head = QueryFormerHead(config).eval()
    torch.nn.init.normal_(head.queries)
    items = glyphs_retrieval.compared_items(head, sources, split)["image"]
    rows = np.flatnonzero(split.items["image"].counted)
    features, mask = sources["image"].batch(rows)
    for k in (1, 2, 3):
        read = head.tokens("image", features, mask, torch.arange(k)).mean(dim=1)
        expected = torch.nn.functional.normalize(read, dim=1).detach().numpy()
        np.testing.assert_allclose(items.prefix(k), expected, rtol=1e-4, atol=1e-5)
    scores = glyphs_retrieval.held_out_scores(head, sources, split)
    assert set(scores["recall"]["image->text"]) == {"1", "2", "3"}
    # Chosen among checkpoints by what it was trained for: all queries.
    assert set(glyphs_retrieval.validation_score(head, sources, split)["recall"]["image->text"]) == {"1"}


def nested_runs(ours: Callable[[int], np.ndarray], alone: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    def run(hits: np.ndarray) -> dict[str, Any]:
        return {"hits": {"text->image": {"1": glyphs_retrieval.packed(hits)}}}

    return {MAIN: [run(ours(seed)) for seed in range(3)], "separate_1": [run(alone)] * 3}


def test_nested_is_compared_query_by_query() -> None:
    rng = np.random.default_rng(0)
    alone = rng.random(1000) < 0.7
    worse = alone & (rng.random(1000) > 0.1)
    row = glyphs_summary.nested_against_separate(nested_runs(lambda _: worse, alone), 1000)["text->image"]["1"]
    assert row["difference"] == pytest.approx(worse.mean() - alone.mean(), abs=1e-5)
    assert row["low"] < row["difference"] < row["high"] < 0
    # Of paired differences in -1, 0: the normal approximation.
    width = 1.96 * (worse.astype(float) - alone).std() / np.sqrt(1000)
    assert row["high"] - row["low"] == pytest.approx(2 * width, rel=0.1)


def test_nested_goal_allows_a_point_or_the_interval() -> None:
    def goal(difference: float, high: float) -> bool:
        rows = {"text->image": {"1": {"difference": difference, "low": -0.1, "high": high}}}
        return bool(glyphs_summary.nested_goal(rows)["met"])

    assert goal(-0.009, -0.001)
    assert goal(-0.03, 0.001)
    assert not goal(-0.03, -0.001)


def test_complementary_goal_is_half_of_the_gap() -> None:
    def goal(own: float) -> bool:
        vectors = {"untrained": 0.4, "raw": 0.8, "complementary": own}
        probes = {vector: {f: {"mean": value} for f in glyphs_probe.FACTORS} for vector, value in vectors.items()}
        return bool(glyphs_summary.complementary_goal(probes)["met"])

    assert goal(0.61)
    assert not goal(0.59)


def test_tables_and_facts() -> None:
    assert markdown_table(("a", "b"), [("x", 1)]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert mean_and_deviation([0.1, 0.2, 0.3]) == {"mean": 0.2, "deviation": 0.1}
    assert mean_and_deviation([0.5]) == {"mean": 0.5, "deviation": 0.0}
    facts = machine_info()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["cores"] >= 1
