"""`fluxtalk-export verify`: engines beside the bundle, and golden vectors of attention and of the longest input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from fluxtalk.artifacts.bundle import Bundle, read_bundle, write_manifest
from fluxtalk.artifacts.engine import EngineRecord, TensorRecord, record_path, write_engine
from fluxtalk.artifacts.files import hash_bytes, hash_file
from fluxtalk.artifacts.golden import GoldenCase
from fluxtalk.errors import BundleError, ParityError, UsageError
from fluxtalk.export.cli import main
from fluxtalk.export.graph.golden_cases import eager_outputs, longest_case
from fluxtalk.export.write_graphs import check_longest
from fluxtalk.scoring.parity import Tolerance
from fluxtalk.tokens import ATTENTION
from tests.conftest import Made

PLAN = bytes(range(256)) * 8


@pytest.fixture
def copy(attentive: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(attentive.folder, tmp_path / "bundle"))


def verify(folder: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["verify", str(folder), "--backend", "ort-cpu", *more])


def sealed(folder: Path, *changed: str) -> None:
    """Write the files' present hashes into the manifest."""
    manifest = read_bundle(folder, check_hashes=False).manifest
    manifest.files.update({name: hash_file(folder / name) for name in changed})
    write_manifest(folder, manifest)


def put_engine(bundle: Bundle, capability: str) -> EngineRecord:
    record = EngineRecord(
        modality="text",
        precision="fp32",
        flavor="rtx",
        version="1.7.1.116",
        cuda_major=None,
        compute_capabilities=[capability],
        profiles=[{"batch": [1, 8, 64], "length": [1, 16, 32], "k": [1, 4, 4]}],
        version_compatible=False,
        graph_hash=bundle.graph_hash("text", "fp32"),
        inputs=[TensorRecord("input_ids", "int64", [-1, -1])],
        outputs=[TensorRecord("tokens", "float32", [-1, -1, 48])],
        engine_hash=hash_bytes(PLAN),
        engine_bytes=len(PLAN),
    )
    write_engine(bundle.engines, PLAN, record)
    return record


def test_one_changed_bit_of_an_engine_or_its_record_is_refused_by_name(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.bundle.folder, tmp_path / "bundle"))
    bundle = read_bundle(folder)
    records = [put_engine(bundle, capability) for capability in ("8.9", "12.0")]
    whole = verify(folder)
    assert whole.exit_code == 0, whole.output
    assert "files and 2 engines unchanged, parity holds" in whole.output
    assert sorted(json.loads(verify(folder, "--json").output)["engines"]) == sorted(r.file for r in records)
    for record in records:
        for path in (bundle.engines / record.file, record_path(bundle.engines, record.file)):
            content = path.read_bytes()
            for place in (0, len(content) // 2, len(content) - 2):
                changed = bytearray(content)
                changed[place] ^= 1
                path.write_bytes(changed)
                done = verify(folder)
                assert done.exit_code == 1, place
                assert path.name in done.stderr
            path.write_bytes(content)


def test_attention_and_the_longest_input_are_golden(attentive: Bundle) -> None:
    done = verify(attentive.folder, "--json")
    assert done.exit_code == 0, done.output
    reports = json.loads(done.output)["reports"]
    assert {(r["precision"], r["modality"]) for r in reports} == {
        (p, m) for p in ("fp32", "fp16") for m in ("image", "text")
    }
    for report in reports:
        assert report["attention"]["max_abs"] <= (2e-6 if report["precision"] == "fp32" else 1e-2)
        assert report["attention"]["sums"] <= 1e-3
    case = attentive.golden.batch["text"]
    inputs, expected = case.inputs, case.expected
    assert expected[ATTENTION].shape == (len(inputs["mask"]), 4, inputs["mask"].shape[1])
    longest = attentive.golden.longest["text"]
    assert longest.inputs["mask"].shape == (1, 32)
    assert longest.inputs["mask"].all()
    assert longest.expected[ATTENTION].shape == (1, 4, 32)
    # Pixels have no length.
    assert "image" not in attentive.golden.longest


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_attention_that_was_scaled_breaks_parity(copy: Path, precision: str) -> None:
    path = copy / f"text.{precision}.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["unscaled" if name == ATTENTION else name for name in node.output]
    model.graph.initializer.append(helper.make_tensor("three", TensorProto.FLOAT, [], [3.0]))
    model.graph.node.append(helper.make_node("Mul", ["unscaled", "three"], [ATTENTION]))
    onnx.save(model, path)
    sealed(copy, path.name)
    done = verify(copy, "--precision", precision)
    assert done.exit_code == 1
    assert f"text in {precision} with k = 1: attention is" in done.stderr
    assert "attention rows' distance from a sum of 1 is 2.0e+00" in done.stderr


def test_golden_vectors_may_lack_the_longest_input_and_nothing_else(copy: Path) -> None:
    """Bundles from before golden attention have another schema, and are refused by it."""
    golden = copy / "golden.safetensors"
    arrays = load_file(golden)
    without = {name: a for name, a in arrays.items() if ".longest." not in name}
    assert len(without) < len(arrays)
    save_file(without, golden)
    sealed(copy, golden.name)
    assert json.loads(verify(copy, "--json", "--precision", "fp32").output)["holds"]
    for missing in ("text.longest.mask", "text.longest.attention", "text.attention", "image.pixels"):
        save_file({name: a for name, a in arrays.items() if name != missing}, golden)
        sealed(copy, golden.name)
        with pytest.raises(BundleError, match=rf"lack '{missing}'; export the bundle again"):
            _ = read_bundle(copy).golden


def promises(made: Made) -> dict[str, Tolerance]:
    return {m: entry.float32.tolerance for m, entry in made.bundle.manifest.modalities.items()}


def test_a_graph_that_does_not_run_the_longest_input_is_refused(made: Made, copy: Path) -> None:
    """An encoder with fewer positions than its preprocessing's max_length behaves like this graph."""
    path = copy / "text.fp32.onnx"
    model = onnx.load(path)
    node = next(n for n in model.graph.node if "input_ids" in n.input)
    node.input[:] = ["bounded" if name == "input_ids" else name for name in node.input]
    # Looks every position up in a table of 24: further ones are out of range.
    table = helper.make_tensor("positions", TensorProto.INT64, [24], [0] * 24)
    model.graph.initializer.extend(
        [
            table,
            helper.make_tensor("nought", TensorProto.INT64, [], [0]),
            helper.make_tensor("one", TensorProto.INT64, [], [1]),
        ]
    )
    added = [
        helper.make_node("Shape", ["input_ids"], ["extent"]),
        helper.make_node("Gather", ["extent", "one"], ["extent_length"]),
        helper.make_node("Range", ["nought", "extent_length", "one"], ["places"]),
        helper.make_node("Gather", ["positions", "places"], ["zeros"]),
        helper.make_node("Add", ["input_ids", "zeros"], ["bounded"]),
    ]
    for place, new in enumerate(added):
        model.graph.node.insert(place, new)
    onnx.save(model, path)
    sealed(copy, path.name)
    done = verify(copy, "--precision", "fp32")
    assert done.exit_code == 1
    assert "text in fp32 does not run the longest input that its preprocessing gives, of length 32" in done.stderr
    longest = read_bundle(copy).golden.longest["text"]
    with pytest.raises(ParityError, match="does not run the longest input"):
        check_longest(copy, {"text": longest}, "fp32", made.bundle.manifest.precisions["fp32"], promises(made), False)


def test_a_graph_that_differs_at_the_longest_input_alone_is_not_exported(made: Made) -> None:
    longest = made.bundle.golden.longest["text"]
    entry, folder = made.bundle.manifest.precisions["fp32"], made.bundle.folder
    assert check_longest(folder, {"text": longest}, "fp32", entry, promises(made), False) == entry
    wrong = {**longest.expected, "embeddings": longest.expected["embeddings"] + np.float32(1e-3)}
    with pytest.raises(ParityError, match="max_abs is 1"):
        check_longest(folder, {"text": GoldenCase(longest.inputs, wrong)}, "fp32", entry, promises(made), True)


def test_an_encoder_that_does_not_take_its_longest_input_is_not_exported(made: Made) -> None:
    embedder = made.run.embedder("text")
    inputs = made.bundle.golden.batch["text"].inputs
    with pytest.raises(UsageError, match=r"text encoder does not run the longest input .* of length 33 \("):
        longest_case(embedder, 33, inputs, attention=False)
    case = longest_case(embedder, 32, inputs, attention=True)
    assert case is not None
    row = int(inputs["mask"].sum(axis=1).argmax())
    real = int(inputs["mask"][row].sum())
    np.testing.assert_array_equal(case.inputs["input_ids"][0, :real], inputs["input_ids"][row, :real])
    np.testing.assert_array_equal(
        case.inputs["input_ids"][0, real : 2 * real][: 32 - real], inputs["input_ids"][row, :real][: 32 - real]
    )
    plain: dict[str, Any] = eager_outputs(embedder, case.inputs, attention=False)
    np.testing.assert_array_equal(plain["tokens"], case.expected["tokens"])
    # None if the batch is as long already, if there is no longest, or if the row is too large for a bundle.
    for max_length in (real, None, 1 << 20):
        assert longest_case(embedder, max_length, inputs, attention=False) is None
