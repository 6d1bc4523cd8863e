"""OpenVINO runs every bundle within its tolerances, and sends nothing over the network."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import (
    FEATURES,
    TOKEN_INDEX,
    Bundle,
    PrecisionEntry,
    graph_name,
    read_bundle,
    write_manifest,
)
from fluxtalk.artifacts.files import hash_file
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import BackendError, InputError
from fluxtalk.export.graph.to_onnx import graph_files
from fluxtalk.export.precision.convert import convert, tolerance_of
from fluxtalk.export.precision.half import emulate_half, to_half
from fluxtalk.preprocess import TextPreprocessor
from fluxtalk.runtime import load
from fluxtalk.runtime.backends import choose as backends
from fluxtalk.runtime.backends import openvino_session as session_openvino
from fluxtalk.runtime.backends.choose import choose
from fluxtalk.runtime.backends.open_sessions import open_session
from fluxtalk.runtime.backends.openvino_session import OpenVinoSession
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.verify import verify_sessions
from fluxtalk.scoring.parity import TOLERANCES
from tests.conftest import Made
from tests.export.graphs import embed, model_of, node
from tests.runtime.memory import growth, needs_proc

# Not `importorskip`: that would import it with its telemetry.
pytestmark = pytest.mark.skipif(not session_openvino.openvino_installed(), reason="openvino is not installed")

METHODS = ("static", "weight-only", "dynamic")


@pytest.fixture(scope="module")
def exported(
    made: Made, table_data: PairDataset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Bundle]]:
    """The shared bundle in every precision and kind of int8, each held to the tolerance that is its precision's own.

    The quality gate is passed by: its encoder of one step would not get through.
    """
    folder = tmp_path_factory.mktemp("openvino")
    wanted = {"static": ("fp32", "fp16", "bf16", "int8"), "weight-only": ("int8",), "dynamic": ("int8",)}
    yield {name: converted(made, table_data, folder / name, which, name) for name, which in wanted.items()}
    shutil.rmtree(folder)


def converted(made: Made, data: PairDataset, folder: Path, precisions: tuple[str, ...], int8: str) -> Bundle:
    shutil.copytree(made.bundle.folder, folder)
    modalities = {}
    for modality, entry in made.bundle.manifest.modalities.items():
        model = onnx.load(made.bundle.graph(modality))
        preprocess, values = made.bundle.preprocess(modality), data.split("train").items[modality].values
        starts = range(0, 64, 8)
        calibration = [preprocess.collate([preprocess.prepare(v) for v in values[i : i + 8]]) for i in starts]
        for precision in precisions:
            graph_files(convert(model, precision, int8, calibration), folder, graph_name(modality, precision))
        graphs = {precision: graph_name(modality, precision) for precision in precisions}
        modalities[modality] = dataclasses.replace(entry, graphs=graphs)
    entries = {}
    for precision in precisions:
        method = int8 if precision == "int8" else ""
        entries[precision] = PrecisionEntry(tolerance_of(precision, method), method)
    files = {path.name: hash_file(path) for path in folder.iterdir() if path.name != "manifest.json"}
    manifest = dataclasses.replace(made.bundle.manifest, precisions=entries, modalities=modalities, files=files)
    write_manifest(folder, manifest)
    return read_bundle(folder)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("static", "fp32"), ("static", "fp16"), ("static", "bf16"), *((method, "int8") for method in METHODS)],
)
def test_every_precision_keeps_its_promise(exported: dict[str, Bundle], name: str, precision: str) -> None:
    """Replay the golden vectors of both modalities: every k, in batches, alone, with more and less padding."""
    bundle = exported[name]
    sessions = {
        m: open_session(bundle, m, BackendOptions("openvino", precision, threads=1)) for m in bundle.manifest.modalities
    }
    reports = list(verify_sessions(bundle, sessions.__getitem__, None, precision))
    assert len(reports) == 8
    assert [report.broken for report in reports] == [[]] * 8
    assert all("openvino (OpenVINO 20" in report.session for report in reports)
    for session in sessions.values():
        session.close()


@pytest.mark.parametrize(("kernel", "rounds"), [(3, False), (1, True)])
def test_a_bfloat16_graph_that_convolves_in_float32_is_not_rounded(tmp_path: Path, kernel: int, rounds: bool) -> None:
    """ONNX has no bfloat16 convolution before opset 22, and OpenVINO would round all of a graph.

    Unless they are the smaller part, as the patches of a vision transformer are.
    """
    if not session_openvino.computes_bf16():
        pytest.skip("this processor has no bfloat16, so OpenVINO computes float32 whatever is asked for")
    draw = np.random.default_rng(0)
    weights = {
        "filters": draw.standard_normal((8, 8, kernel, kernel)).astype(np.float32),
        "shape": np.array([0, -1, 8]),
        "product": draw.standard_normal((8, 48)).astype(np.float32),
    }
    nodes = [
        node("Conv", ["pixels", "filters"], "convolved"),
        node("Transpose", ["convolved"], "last", perm=[0, 2, 3, 1]),
        node("Reshape", ["last", "shape"], "flat"),
        node("MatMul", ["flat", "product"], FEATURES),
        node("Gather", [FEATURES, "token_index"], "tokens", axis=1),
        node("Identity", ["tokens"], "embeddings"),
    ]
    given: dict[str, tuple[int, list[Any]]] = {
        "pixels": (onnx.TensorProto.FLOAT, ["batch", 8, 5, 5]),
        "token_index": (onnx.TensorProto.INT64, ["k"]),
    }
    model = model_of(nodes, given, {"tokens": 3, "embeddings": 3}, weights)
    onnx.save(to_half(model, "bf16"), tmp_path / "image.bf16.onnx")
    pixels = draw.standard_normal((4, 8, 5, 5)).astype(np.float32)
    expected = embed(emulate_half(model, "bf16"), {"pixels": pixels})["tokens"]
    session = OpenVinoSession(tmp_path / "image.bf16.onnx", 1, "bf16")
    assert ("in bfloat16" in session.describe()) == rounds
    apart = np.abs(session.run({"pixels": pixels}, 4)["tokens"] - expected).max() / np.abs(expected).max()
    # Two steps of bfloat16, of which the graph has one behind the product.
    assert apart <= 2**-6
    session.close()


def test_it_embeds_what_onnxruntime_embeds(made: Made, table_data: PairDataset) -> None:
    items = {m: list(table_data.split("test").items[m].values)[:9] for m in ("image", "text")}
    with load(made.bundle.folder, "openvino", threads=1, verify=True) as found, load(made.bundle.folder) as expected:
        assert "1 threads, in float32); asked for by name" in found.describe()
        for modality, values in items.items():
            for k in (1, 3, 4):
                for output in ("pooled", "tokens"):
                    np.testing.assert_allclose(
                        found.embed(modality, values, k, output), expected.embed(modality, values, k, output), atol=1e-5
                    )


def test_one_token_is_computed_or_all_of_them(made: Made) -> None:
    """Each k is a shape of its own, and OpenVINO keeps memory for every shape."""
    golden = made.bundle.golden.batch["text"].inputs
    exact = OpenVinoSession(made.bundle.graph("text"), 1)
    session = OpenVinoSession(made.bundle.graph("text"), 1, num_tokens=4)
    seen: list[int] = []
    compiled = session._model

    class Request:
        def __init__(self) -> None:
            self.request = compiled.create_infer_request()

        def infer(self, given: Arrays, **options: Any) -> Any:
            seen.append(len(given[TOKEN_INDEX]))
            return self.request.infer(given, **options)

    session._idle.append(Request())
    for k in (1, 2, 3, 4):
        found, expected = session.run(golden, k), exact.run(golden, k)
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6)
    assert seen == [1, 4, 4, 4]


def test_many_threads_share_a_session(made: Made) -> None:
    """Each thread gets its own rows, and keeps them while others run; some batches are large enough to free memory."""
    session = OpenVinoSession(made.bundle.graph("text"), 1)
    case = made.bundle.golden.batch["text"]
    golden, expected = case.inputs, case.expected

    def run(number: int) -> float:
        row, k = number % 30, 1 + number % 4
        rows = slice(None) if number % 7 == 0 else slice(row, row + 1 + number % 3)
        part = {name: array[rows] for name, array in golden.items()}
        found = session.run(part, k)["embeddings"]
        return float(np.abs(found - expected["embeddings"][rows, :k]).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(run, range(400))) < 1e-5
    first = session.run(golden, 4)["tokens"]
    kept = first.copy()
    session.run({name: np.roll(array, 1, axis=0) for name, array in golden.items()}, 4)
    np.testing.assert_array_equal(first, kept)


def test_arrays_that_are_views_or_read_only_are_taken(made: Made) -> None:
    session = OpenVinoSession(made.bundle.graph("image"), 1)
    case = made.bundle.golden.batch["image"]
    golden, expected = case.inputs, case.expected
    pixels = np.concatenate([golden["pixels"]] * 2)[::2]
    pixels.setflags(write=False)
    found = session.run({"pixels": pixels}, 4)["embeddings"]
    np.testing.assert_allclose(found, np.concatenate([expected["embeddings"]] * 2)[::2], atol=1e-5)


def test_wrong_inputs_are_refused(made: Made) -> None:
    """OpenVINO itself would take a missing input from the run before, and cast another type."""
    session = OpenVinoSession(made.bundle.graph("image"), 1)
    pixels = np.zeros((1, 32, 32, 1), np.uint8)
    session.run({"pixels": pixels}, 4)
    with pytest.raises(InputError, match=r"takes pixels \(uint8\), token_index \(int64\); got token_index \(int64\)\."):
        session.run({}, 4)
    with pytest.raises(InputError, match=r"got pixels \(float32\), token_index \(int64\)\."):
        session.run({"pixels": pixels.astype(np.float32)}, 4)
    with pytest.raises(InputError, match=r"OpenVINO could not run the graph: .*shape=\[\?,32,32,1\].*incompatible\."):
        session.run({"pixels": pixels[:, :30]}, 4)
    # A refused batch does not affect the next.
    assert session.run({"pixels": pixels}, 4)["tokens"].shape == (1, 4, 48)


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"OpenVINO cannot load .*text.onnx: .*Could not open the file"):
        OpenVinoSession(tmp_path / "text.onnx")


def test_where_it_is_missing_the_error_says_how_to_get_it(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_openvino, "openvino_installed", lambda: False)
    with pytest.raises(
        BackendError, match=r"needs OpenVINO, which is not installed; pip install 'fluxtalk\[openvino\]'"
    ):
        load(made.bundle.folder, "openvino")


def test_what_auto_takes(exported: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "compute_capability", lambda: None)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    bundle = exported["static"]

    def taken(bundle: Bundle, precision: str | None = None) -> tuple[str, str]:
        choice = choose(bundle, BackendOptions("auto", precision))
        return choice.backend, choice.precision

    # Small encoders are faster in ONNX Runtime, which has no bf16 on the CPU.
    assert taken(bundle) == ("ort-cpu", "fp32")
    assert taken(bundle, "bf16") == ("openvino", "bf16")
    half = {m: dataclasses.replace(e, graphs={"bf16": e.graphs["bf16"]}) for m, e in bundle.manifest.modalities.items()}
    only = dataclasses.replace(
        bundle.manifest, precisions={"bf16": PrecisionEntry(TOLERANCES["bf16"])}, modalities=half
    )
    assert taken(dataclasses.replace(bundle, manifest=only)) == ("openvino", "bf16")
    monkeypatch.setattr(backends, "_LARGE", 1)
    assert taken(bundle) == taken(bundle, "fp32") == ("openvino", "fp32")
    assert "text: openvino by rule" in choose(bundle, BackendOptions()).reason
    assert [taken(exported[m], "int8")[0] for m in METHODS] == ["openvino", "ort-cpu", "ort-cpu"]
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert taken(bundle) == ("ort-cpu", "fp32")
    monkeypatch.setattr(backends, "openvino_installed", lambda: False)
    with pytest.raises(
        BackendError, match=r"ask for fp32 or fp16 or int8, ask for openvino \(pip install 'fluxtalk\[openvino"
    ):
        choose(bundle, BackendOptions("auto", "bf16"))


_QUIET = """
import socket, sys
from pathlib import Path
from fluxtalk.runtime import load

def refuse(*_):
    raise AssertionError("something is sent")

socket.socket.connect = socket.getaddrinfo = refuse
with load(Path(sys.argv[1]), "openvino", threads=1) as embedder:
    assert embedder.embed("text", ["black chess queen"], k=2).shape == (1, 48)
print([name for name in sys.modules if name.split(".")[0] in ("openvino_telemetry", "torch", "onnx")])
"""


def test_it_reports_to_nobody(made: Made, tmp_path: Path) -> None:
    """`import openvino` by itself sends an event, and writes a user's number into the home folder."""
    done = subprocess.run(
        [sys.executable, "-c", _QUIET, str(made.bundle.folder)],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PATH": ""},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_proc
def test_memory_is_given_back(made: Made) -> None:
    """A batch of 2,048 needs 280 MB, of which about 10 remain."""
    assert growth(session_openvino.OpenVinoSession, made.bundle.graph("image")) < 100e6


def test_the_file_may_change_while_it_serves(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(made.bundle.folder, folder)
    bundle = read_bundle(folder)
    session = OpenVinoSession(bundle.graph("text"), 1)
    case = bundle.golden.batch["text"]
    golden, expected = case.inputs, case.expected
    bundle.graph("text").write_bytes(b"other")
    found = session.run(golden, 4)["embeddings"]
    np.testing.assert_allclose(found, expected["embeddings"], atol=1e-5)


class Recording:
    """A real request that remembers the shapes that it was given."""

    def __init__(self, request: Any, shapes: set[tuple[int, ...]]) -> None:
        self._request = request
        self._shapes = shapes

    def infer(self, given: dict[str, NDArray[Any]], **settings: Any) -> Any:
        self._shapes.update(array.shape for name, array in given.items() if name == "mask")
        return self._request.infer(given, **settings)


def test_batches_of_every_size_and_length_are_few_shapes_and_the_same_rows(made: Made) -> None:
    """OpenVINO keeps memory for every shape that it has met, for as long as it runs."""
    draw, preprocess = np.random.default_rng(0), made.bundle.preprocess("text")
    assert isinstance(preprocess, TextPreprocessor)
    longest = preprocess.max_length
    shapes: set[tuple[int, ...]] = set()
    session = open_session(made.bundle, "text", BackendOptions("openvino", threads=1))
    assert isinstance(session, OpenVinoSession)
    reference = open_session(made.bundle, "text", BackendOptions("ort-cpu", threads=1))
    session._idle.append(Recording(session._model.create_infer_request(), shapes))
    given = [(1 + n % 11, length) for n, length in enumerate(range(1, longest + 1))]
    for rows, length in given:
        items = [preprocess.from_ids(draw.integers(1, 20, draw.integers(1, length + 1)).tolist()) for _ in range(rows)]
        inputs = preprocess.collate([*items[1:], preprocess.from_ids([1] * length)])
        found = session.run(inputs, 3)
        assert found["tokens"].shape[:2] == (rows, 3)
        if length % 13 == 0 or length == longest:
            expected = reference.run(inputs, 3)
            assert all(np.abs(found[name] - expected[name]).max() <= 1e-5 for name in found)
    assert {shape for shape in shapes if shape[1] > longest} == set()
    assert {shape[1] for shape in shapes} == {*range(8, min(longest, 32), 8), *range(32, longest, 16), longest}
    assert {shape[0] for shape in shapes} == {1, 2, 3, 4, 6, 8, 12}
