"""`fluxtalk-export` as a user meets it."""

from __future__ import annotations

import inspect
import json
import resource
import shutil
import signal
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from fluxtalk.artifacts.bundle import read_bundle, write_manifest
from fluxtalk.artifacts.files import hash_file
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import ParityError, UsageError
from fluxtalk.export.cli import main
from fluxtalk.export.graph.to_onnx import export_onnx
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import FrozenEncoder
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from tests.conftest import Made


def run(*parts: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in parts])


def one_sentence(done: Result, code: int, *words: str) -> None:
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture
def bundle(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.bundle.folder, tmp_path / "bundle"))


def test_export_and_verify(made: Made, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    done = run("onnx", made.run.root, "-o", output)
    assert done.exit_code == 0, done.output
    # The same run gives the same files; how fast they ran is another matter.
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (output, made.bundle.folder)]
    assert manifests[0]["files"] == manifests[1]["files"]
    for manifest in manifests:
        del manifest["manifest_hash"], manifest["precisions"]["fp32"]["serving"]["latency_ms"]
    assert manifests[0] == manifests[1]
    verified = run("verify", output)
    assert verified.exit_code == 0, verified.output
    assert "parity holds" in verified.output
    report = json.loads(run("verify", output, "--json", "--precision", "fp32").output)
    assert report["holds"]
    assert [(r["modality"], r["k"]) for r in report["reports"]] == [
        (m, k) for m in ("image", "text") for k in (1, 2, 3, 4)
    ]
    assert all(r["difference"]["max_abs"] <= 1e-6 for r in report["reports"])
    assert report["tolerances"]["fp32"]["max_abs"] == 1e-5
    one_sentence(run("verify", output, "--precision", "bf16"), 2, "fp32", "--precision bf16")
    one_sentence(run("onnx", made.run.root, "-o", output), 1, "already exists")


def test_a_moved_stage1_is_found_where_it_is_said_to_be(made: Made, stage1_path: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(made.run.root, tmp_path / "elsewhere" / "run"))
    config = json.loads((moved / "run.json").read_text())
    config["options"]["stage1_checkpoint"] = config["facts"]["stage1_checkpoint"] = str(tmp_path / "gone.pth")
    config["facts"]["stage1_relative"] = "gone.pth"
    (moved / "run.json").write_text(json.dumps(config))
    one_sentence(run("onnx", moved, "-o", tmp_path / "bundle"), 1, "gone.pth", "--stage1-checkpoint")
    assert not (tmp_path / "bundle").exists()
    done = run("onnx", moved, "-o", tmp_path / "bundle", "--stage1_checkpoint", stage1_path)
    assert done.exit_code == 0, done.output


def test_a_changed_file_is_named(bundle: Path) -> None:
    graph = bundle / "text.fp32.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    one_sentence(run("verify", bundle), 1, "text.fp32.onnx", "changed")
    graph.unlink()
    one_sentence(run("verify", bundle), 1, "text.fp32.onnx", "lacks")


def test_wrong_golden_vectors_break_parity(bundle: Path) -> None:
    golden = bundle / "golden.safetensors"
    arrays = load_file(golden)
    arrays["text.embeddings"] = np.roll(arrays["text.embeddings"], 1, axis=-1)
    save_file(arrays, golden)
    manifest = read_bundle(bundle, check_hashes=False).manifest
    manifest.files["golden.safetensors"] = hash_file(golden)
    write_manifest(bundle, manifest)
    one_sentence(run("verify", bundle), 1, "4 of 8 parity checks", "text in fp32")
    report = json.loads(run("verify", bundle, "--json").stdout)
    assert not report["holds"]
    assert {r["modality"] for r in report["reports"] if r["broken"]} == {"text"}


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    one_sentence(run("verify", tmp_path), 1, "not a bundle")
    one_sentence(run("onnx", tmp_path, "-o", tmp_path / "b"), 1, "not a training run")
    assert not (tmp_path / "b").exists()


def test_a_graph_that_differs_leaves_nothing(
    made: Made, table_data: PairDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faithful = OnnxRuntimeSession.run

    def shifted(self: OnnxRuntimeSession, *args: Any, **kwargs: Any) -> Any:
        return {name: array + 1e-4 for name, array in faithful(self, *args, **kwargs).items()}

    monkeypatch.setattr(OnnxRuntimeSession, "run", shifted)
    with pytest.raises(ParityError, match=r"max_abs is 1\.\de-04 and not at most 1e-06"):
        write_bundle(made.run, table_data, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


class AsksForValues(torch.nn.Module):
    """Control flow that depends on values, which no graph can hold."""

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return features * 2 if float(features.sum()) > 0 else features


class AsksForTheRare(torch.nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = torch.linalg.eigvalsh(features @ features.transpose(1, 2))
        return features + values.sum(dim=-1)[:, None, None]


def exported(module: torch.nn.Module) -> None:
    preprocess = FeaturesPreprocessor(6)
    encoder = FrozenEncoder(module, preprocess, 6)
    embedder = EagerEmbedder(encoder, RegisterTokenModule({"sound": 6}, dim=16, heads=2), "sound")
    batch = preprocess.collate([np.ones((3, 6), np.float32), np.ones((2, 6), np.float32)])
    export_onnx(embedder, preprocess, batch)


def test_an_encoder_that_cannot_be_traced_is_one_sentence_with_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    lines, first = inspect.getsourcelines(AsksForValues.forward)
    with pytest.raises(UsageError, match=r"The sound encoder cannot be exported to ONNX .*control flow") as caught:
        exported(AsksForValues())
    sentence = str(caught.value)
    assert f"at {__file__}, line {first + 1}, `{lines[1].strip()}`" in sentence
    assert "data-dependent" in sentence
    assert "draft_export" not in sentence
    assert "\n" not in sentence
    # The exporter's report is for the traceback that --debug shows, and not for the screen.
    assert capfd.readouterr() == ("", "")
    report = "".join(traceback.format_exception(caught.value))
    assert "def forward(self, arg0_1" in report
    assert "The following call raised this error" in report


def test_an_operator_that_onnx_lacks_is_named() -> None:
    with pytest.raises(UsageError, match=r"cannot be exported to ONNX \(No ONNX function .*eigh.*standard operators"):
        exported(AsksForTheRare())


def test_a_full_disk_leaves_no_bundle(made: Made, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        done = run("onnx", made.run.root, "-o", tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    # Which file, and so which disk.
    one_sentence(done, 1, "File too large", ".onnx'")
    assert list(tmp_path.iterdir()) == []
