"""`fluxtalk-export` as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from fluxtalk.artifacts import hash_file
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import ParityError
from fluxtalk.export.cli import main
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.runtime.golden import ParityReport
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
    # The same run gives the same bundle.
    assert json.loads((output / "manifest.json").read_text()) == json.loads(
        (made.bundle.folder / "manifest.json").read_text()
    )
    verified = run("verify", output)
    assert verified.exit_code == 0, verified.output
    assert "parity holds" in verified.output
    one_sentence(run("onnx", made.run.root, "-o", output), 1, "already exists")


def test_a_moved_stage1_is_found_where_it_is_said_to_be(made: Made, stage1_path: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(made.run.root, tmp_path / "elsewhere" / "run"))
    config = json.loads((moved / "run.json").read_text())
    config["options"]["stage1_checkpoint"] = config["facts"]["stage1_checkpoint"] = str(tmp_path / "gone.pth")
    config["facts"]["stage1_relative"] = "gone.pth"
    (moved / "run.json").write_text(json.dumps(config))
    one_sentence(run("onnx", moved, "-o", tmp_path / "bundle"), 1, "gone.pth", "--stage1_checkpoint")
    assert not (tmp_path / "bundle").exists()
    done = run("onnx", moved, "-o", tmp_path / "bundle", "--stage1_checkpoint", stage1_path)
    assert done.exit_code == 0, done.output


def test_a_changed_file_is_named(bundle: Path) -> None:
    graph = bundle / "text.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    one_sentence(run("verify", bundle), 1, "text.onnx", "changed")
    graph.unlink()
    one_sentence(run("verify", bundle), 1, "text.onnx", "lacks")


def test_wrong_golden_vectors_break_parity(bundle: Path) -> None:
    golden = bundle / "golden.safetensors"
    arrays = load_file(golden)
    arrays["text.embeddings"] = np.roll(arrays["text.embeddings"], 1, axis=-1)
    save_file(arrays, golden)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["golden.safetensors"] = hash_file(golden)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    one_sentence(run("verify", bundle), 1, "Parity does not hold", "text")


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    one_sentence(run("verify", tmp_path), 1, "no bundle")
    one_sentence(run("onnx", tmp_path, "-o", tmp_path / "b"), 1, "no training run")
    assert not (tmp_path / "b").exists()


def test_a_graph_that_differs_leaves_nothing(
    made: Made, table_data: PairDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = ParityReport("image", "x", 1, 0.5, 0.5)
    monkeypatch.setattr("fluxtalk.export.write_bundle.compare", lambda *_a, **_k: bad)
    with pytest.raises(ParityError):
        write_bundle(made.run, table_data, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
