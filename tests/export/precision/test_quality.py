"""The quality gate: what it measures, when it shuts, and what is left then."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import BackendError, IncompleteError, QualityError, UsageError
from fluxtalk.export import write_graphs
from fluxtalk.export.cli import main
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.precision.quality import RecallLoss, compare_quality, held_out_items, score
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.checkpoints.trained_run import TrainedRun
from fluxtalk.runtime import load
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.verify import verify_bundle
from fluxtalk.tokens import TokenLayout
from tests.conftest import Made

MODALITIES = ("image", "text")


@pytest.fixture(scope="module")
def every_precision(
    trained_run: TrainedRun, table_data: PairDataset, glyph_data: PairDataset, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    # A head of 96 characters tells others hardly apart: 8 bits of a number move its neighbors more than is allowed.
    options = ExportOptions(precisions=("fp32", "fp16", "bf16", "int8"), allow_quality_loss=True)
    output = tmp_path_factory.mktemp("precisions") / "bundle"
    return write_bundle(trained_run, table_data, output, options, eval_data=glyph_data)


def test_a_bundle_holds_every_precision_proved(every_precision: Bundle) -> None:
    manifest = every_precision.manifest
    assert list(manifest.precisions) == ["fp32", "fp16", "bf16", "int8"]
    report = json.loads((every_precision.folder / "quality.json").read_text())["precisions"]
    for name, entry in manifest.precisions.items():
        assert not any("cosine" in phrase or "max_abs" in phrase for phrase in report[name]["gate"])
        assert report[name]["holds"] or name in ("bf16", "int8")
        assert report[name]["items"]["text"] == 500
        assert entry.serving["recall"].keys() == {"text->image", "image->text"}
        assert ("latency_ms" in entry.serving) == (name != "bf16")
    assert report["bf16"]["measured_on"].startswith("float32 on ort-cpu, rounded to bf16")
    assert report["fp32"]["max_abs"] == 0
    # It does measure: halves differ from float32, and bfloat16 more than float16.
    assert 0 < report["fp16"]["max_abs"] < report["bf16"]["max_abs"]
    assert manifest.precisions["int8"].method in ("static", "weight-only")
    # An item's int8 embedding does not depend on its neighbors.
    assert max(report["int8"]["rows"].values()) <= 1e-5
    sizes = {p: every_precision.graph("text", p).stat().st_size for p in manifest.precisions}
    assert sizes["fp16"] < 0.62 * sizes["fp32"]
    assert sizes["bf16"] < 0.62 * sizes["fp32"]
    assert sizes["int8"] < sizes["fp32"]


def test_graphs_keep_their_inputs_outputs_and_operators(every_precision: Bundle) -> None:
    for modality in MODALITIES:
        described = []
        for precision in every_precision.manifest.precisions:
            model = onnx.load(every_precision.graph(modality, precision))
            onnx.checker.check_model(model, full_check=True)
            assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
            values = [*model.graph.input, *model.graph.output]
            described.append([(v.name, v.type.tensor_type.elem_type, str(v.type.tensor_type.shape)) for v in values])
        assert all(other == described[0] for other in described)


def test_verify_goes_through_what_runs_here(every_precision: Bundle) -> None:
    verification = verify_bundle(every_precision.folder, BackendOptions("ort-cpu"))
    assert {report.precision for report in verification.reports} == {"fp32", "fp16", "int8"}
    assert list(verification.not_run) == ["bf16"]
    assert not verification.broken
    assert "bf16: not run" in verification.table()
    with pytest.raises(BackendError, match="bf16"):
        verify_bundle(every_precision.folder, BackendOptions("ort-cpu"), ["bf16"])


def test_each_precision_serves(every_precision: Bundle) -> None:
    texts = ["latin small letter a", "snowman"]
    with load(every_precision.folder) as embedder:
        expected = embedder.embed("text", texts)
    for precision in ("fp16", "int8"):
        with load(every_precision.folder, precision=precision) as embedder:
            assert precision in embedder.describe()
            found = embedder.embed("text", texts)
        assert found.dtype == np.float32
        assert (found != expected).any()
        tolerance = every_precision.manifest.precisions[precision].tolerance
        assert 0.95 < tolerance.min_cosine < 1
        assert (found * expected).sum(axis=-1).min() >= tolerance.min_cosine


def noisy(model: onnx.ModelProto, size: float) -> onnx.ModelProto:
    """The model with noise on every weight of a product."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    rng = np.random.default_rng(0)
    for tensor in result.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 2 and array.dtype == np.float32:
            noise = rng.standard_normal(array.shape).astype(np.float32) * size * array.std()
            tensor.CopyFrom(onnx.numpy_helper.from_array(array + noise, tensor.name))
    return result


@pytest.fixture
def spoilt_int8(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """int8 that is far too coarse; the methods that were tried."""
    tried: list[str] = []

    def convert(model: onnx.ModelProto, precision: str, method: str, _: Any) -> onnx.ModelProto:
        if precision == "int8":
            tried.append(method)
        return noisy(model, 0.5) if precision == "int8" else model

    monkeypatch.setattr(write_graphs, "convert", convert)
    return tried


def export(made: Made, output: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["onnx", str(made.run.root), "-o", str(output), *arguments])


def test_a_precision_that_costs_too_much_is_refused_and_nothing_is_left(
    made: Made, tmp_path: Path, spoilt_int8: list[str]
) -> None:
    done = export(made, tmp_path / "bundle", "--precision", "int8")
    assert done.exit_code == QualityError.exit_code == 1
    assert done.stderr.startswith("error: The quality gate does not hold for int8 (static): "), done.stderr
    assert re.search(r"median cosine is 0\.\d+ and not at least 0.995.*--allow-quality-loss", done.stderr)
    # One of each modality, of the methods that keep rows apart.
    assert spoilt_int8 == ["static", "static", "weight-only", "weight-only"]
    assert list(tmp_path.iterdir()) == []


def test_one_precision_that_fails_does_not_discard_the_others(
    made: Made, tmp_path: Path, spoilt_int8: list[str]
) -> None:
    """What holds is written and serves; what does not is named, in the message and in the report."""
    folder = tmp_path / "bundle"
    precisions = [word for precision in ("fp32", "int8", "fp16") for word in ("--precision", precision)]
    done = export(made, folder, *precisions, "--int8", "weight-only")
    assert done.exit_code == IncompleteError.exit_code == 3
    words = f"error: {folder} was written with fp32, fp16, and without int8: int8 (weight-only): "
    assert done.stderr.startswith(words), done.stderr
    bundle = read_bundle(folder)
    assert list(bundle.manifest.precisions) == ["fp32", "fp16"]
    report = json.loads((folder / "quality.json").read_text())
    assert set(report["precisions"]) == {"fp32", "fp16"}
    assert "median cosine" in report["refused"]["int8"]
    assert not list(folder.glob("*int8*"))
    assert not verify_bundle(folder, BackendOptions()).broken


def test_an_allowed_loss_is_written_down_and_promised_no_more(
    made: Made, tmp_path: Path, spoilt_int8: list[str]
) -> None:
    done = export(made, tmp_path / "bundle", "--precision", "int8", "--int8", "dynamic", "--allow-quality-loss")
    assert done.exit_code == 0, done.stderr
    assert spoilt_int8 == ["dynamic", "dynamic"]
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.manifest.modalities["text"].graphs == {"int8": "text.int8.onnx"}
    report = json.loads((bundle.folder / "quality.json").read_text())["precisions"]["int8"]
    assert not report["holds"]
    assert any("cosine" in phrase for phrase in report["gate"])
    entry = bundle.manifest.precisions["int8"]
    assert entry.method == "dynamic"
    assert entry.tolerance.rows is None
    assert entry.tolerance.min_cosine < 0.995
    # What the manifest still promises holds.
    assert not verify_bundle(bundle.folder, BackendOptions()).broken


def test_without_held_out_pairs_only_float32_is_exported(made: Made, table_data: PairDataset, tmp_path: Path) -> None:
    empty = dataclasses.replace(table_data.split("validation"), ids=(), items={}, seen=np.zeros(0, dtype=bool))
    nothing = dataclasses.replace(table_data, name="nothing", splits={**table_data.splits, "validation": empty})
    with pytest.raises(
        IncompleteError, match=r"with fp32, and without fp16: .*not be measured: .*nothing.*--eval-data"
    ):
        write_bundle(made.run, table_data, tmp_path / "a", ExportOptions(("fp32", "fp16")), eval_data=nothing)
    assert list(read_bundle(tmp_path / "a").manifest.precisions) == ["fp32"]
    bundle = write_bundle(made.run, table_data, tmp_path / "b", eval_data=nothing)
    assert "recall" not in read_bundle(bundle.folder).manifest.precisions["fp32"].serving


def test_scores_of_a_known_change(made: Made, table_data: PairDataset) -> None:
    preprocess = {m: part.preprocess for m, part in made.run.stage1.modalities.items()}
    held_out = held_out_items(table_data, preprocess, 20, TokenLayout(4, 3, 48), "mean")
    assert len(held_out.split.ids) == 20
    sessions = {m: OnnxRuntimeSession(made.bundle.graph(m)) for m in MODALITIES}
    reference = score(held_out, sessions, 4)
    # The items are those of the split, each with its own embedding.
    validation = table_data.split("validation")
    text = validation.items["text"]
    row = int(np.flatnonzero(text.groups == validation.ids.index(held_out.split.ids[7]))[0])
    batch = preprocess["text"].collate([preprocess["text"].prepare(text.values[row])])
    mine = int(np.flatnonzero(held_out.split.items["text"].groups == 7)[0])
    alone = sessions["text"].run(batch, 4)["embeddings"][0]
    assert np.abs(reference.embeddings["text"][mine] - alone).max() <= 1e-6
    assert max(reference.rows.values()) <= 1e-6

    noise = {"image": 3e-7, "text": 3e-7}
    same = compare_quality(held_out, reference, reference, "int8", noise, "here")
    assert (same.max_abs, same.top1, same.recall_loss, same.recall_bound, same.broken) == (0, 1, 0, 0, [])
    assert 0 < same.separated <= same.queries
    # Texts take each other's places: all of them are found by the wrong query.
    turned = {**reference.embeddings, "text": np.roll(reference.embeddings["text"], 1, axis=0)}
    moved = dataclasses.replace(reference, embeddings=turned)
    worse = compare_quality(held_out, reference, moved, "int8", noise, "here")
    assert worse.top1 < 0.5
    assert any("queries that float32 separates find another nearest item" in phrase for phrase in worse.broken)
    # With a noise that explains every lead, no neighbor counts.
    blind = compare_quality(held_out, reference, moved, "int8", {"image": 1.0, "text": 1.0}, "here")
    assert (blind.separated, blind.top1) == (0, 1)
    # One item far off moves the smallest cosine alone, which refuses nothing.
    odd = {m: array.copy() for m, array in reference.embeddings.items()}
    odd["text"][0] *= -1
    found = compare_quality(held_out, reference, dataclasses.replace(reference, embeddings=odd), "fp16", noise, "here")
    assert found.min_cosine == pytest.approx(-1)
    assert found.median_cosine == pytest.approx(1)
    assert not any("cosine" in phrase for phrase in found.broken)
    # What moves most items is noticed by the median.
    opposite = {m: -array for m, array in reference.embeddings.items()}
    low = compare_quality(
        held_out, reference, dataclasses.replace(reference, embeddings=opposite), "fp16", noise, "here"
    )
    assert low.broken[0] == "the median cosine is -1.00000 and not at least 0.999"


def losing(lost: int, gained: int, queries: int) -> RecallLoss:
    before, after = np.zeros(queries, dtype=bool), np.zeros(queries, dtype=bool)
    before[:lost] = True
    after[lost : lost + gained] = True
    return RecallLoss.between(before, after)


def test_recall_is_held_by_its_bound_over_queries() -> None:
    """A loss of 0.4 points over 500 queries is surely less than one; one of 0.8 points may be more."""
    assert losing(0, 0, 500).bound == 0
    loss = losing(2, 0, 500)
    differences = np.array([1.0] * 2 + [0.0] * 498)
    assert loss.bound == pytest.approx(0.004 + 1.645 * differences.std(ddof=1) / np.sqrt(500))
    assert loss.beyond <= 0
    assert losing(4, 0, 500).loss == pytest.approx(0.008)
    assert losing(4, 0, 500).beyond > 0
    # The same share of more queries is known better.
    assert losing(12, 0, 2000).beyond <= 0 < losing(3, 0, 500).beyond
    # What moves both ways is less certain than its mean.
    assert losing(20, 20, 500).loss == 0
    # Of a few queries one may be lost.
    assert losing(1, 0, 20).beyond <= 0
    assert losing(2, 0, 20).beyond > 0


def test_options_are_refused() -> None:
    for options, words in (
        ({"precisions": ("fp8",)}, "fp32, fp16, bf16, int8"),
        ({"precisions": ("fp16", "fp16")}, "each once"),
        ({"precisions": ()}, "--precision"),
        ({"int8": "best"}, "static, weight-only, dynamic"),
        ({"eval_items": 1}, "at least 2"),
    ):
        with pytest.raises(UsageError, match=words):
            ExportOptions(**options)  # type: ignore[arg-type]
