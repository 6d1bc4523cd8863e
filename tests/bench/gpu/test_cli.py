"""`bench.gpu.cli`: what it says where things are missing, and its rehearsal without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.gpu import cli as gpu
from bench.gpu import engines as gpu_engines
from bench.gpu import latency as gpu_latency
from bench.gpu.engines import parity
from bench.gpu.models import Subject, large_embedders
from bench.gpu.report import Report
from fluxtalk.artifacts.bundle import TOKEN_INDEX
from fluxtalk.errors import BackendError
from tests.conftest import Made

ROOT = Path(__file__).resolve().parents[3]


def subject(made: Made) -> Subject:
    return Subject("demo", made.bundle, {name: made.run.embedder(name) for name in ("image", "text")})


def test_a_part_that_fails_does_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path / "gpu.json", limit=100)

    def missing() -> None:
        raise BackendError("there is no GPU")

    assert report.part("one", 0, missing) is None
    assert report.part("two", 0, lambda: 1 // 0) is None
    assert report.part("three", 0, lambda: 3) == 3
    assert report.part("four", 1000, lambda: 4) is None
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["could_not"][0] == {"what": "one", "why": "there is no GPU"}
    assert "it takes 1000" in written["could_not"][1]["why"]
    (failed,) = written["failed"]
    assert (failed["what"], "ZeroDivisionError" in failed["why"], "1 // 0" in failed["trace"]) == ("two", True, True)
    assert report.failed
    assert set(written["seconds"]) == {"one", "two", "three", "four"}
    printed = capsys.readouterr().out
    assert "could not do one: there is no GPU" in printed
    assert "FAILED: two: ZeroDivisionError" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["-o", str(tmp_path / "gpu.json")]) == 1
    assert "could not do everything: PyTorch finds no CUDA device here" in capsys.readouterr().out
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["facts"]["gpu"] is None
    assert written["facts"]["packages"]["torch"] == torch.__version__


def test_nothing_measured_is_no_success(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle, and no backend that could run it: every part ends well, and has nothing to show."""
    monkeypatch.setattr(gpu_engines, "backends", lambda cpu: ("ort-cuda",))
    monkeypatch.setattr(gpu_latency, "backends", lambda cpu: ("ort-cuda",))
    monkeypatch.setattr(gpu_engines, "FLAVORS", ())
    output = tmp_path / "gpu.json"
    assert gpu.main(["--cpu", "--bundle", str(made.bundle.folder), "-o", str(output)]) == 1
    written = json.loads(output.read_text())
    assert written["parity"] == written["latency"] == written["failed"] == []
    monkeypatch.setattr(gpu_engines, "backends", lambda cpu: ("ort-cpu",))
    assert gpu.main(["--cpu", "--bundle", str(made.bundle.folder), "-o", str(output)]) == 0


def test_parity_of_a_subject_and_what_breaks_it(made: Made, tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", limit=1000)
    rows = parity(report, subject(made), ("ort-cpu",), quick=True)
    assert not report.failed
    assert {(row["modality"], row["against"], row["k"]) for row in rows} == {
        (modality, against, k) for modality in ("image", "text") for against in ("golden", "eager") for k in range(1, 5)
    }
    assert all(0 <= row["max_abs"] <= 1e-6 and row["broken"] == [] for row in rows)
    assert len({row["cases"] for row in rows if row["against"] == "eager"}) == 2
    parity(report, subject(made), ("ort-cuda", "tensorrt"), quick=True)
    assert [entry["what"].split()[0] for entry in report.results["could_not"]] == ["ort-cuda", "tensorrt"]
    # An eager model that is another one.
    other = subject(made)
    other.eager["text"].head.registers.data = torch.randn(4, 48)
    parity(report, other, ("ort-cpu",), quick=True)
    (failed,) = report.results["failed"]
    assert failed["what"] == "parity of demo text in fp32 on ort-cpu"
    assert "against eager: max_abs is" in failed["why"]


def test_batches_have_the_sizes_that_were_asked_for(made: Made) -> None:
    tried = subject(made)
    assert tried.tried_lengths("image") == [0]
    assert tried.tried_lengths("text") == [1, 2, 7, 16, 32]
    for length in (1, 5, 32):
        batch = tried.batch("text", 9, length)
        assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
            "input_ids": ((9, length), np.dtype(np.int64)),
            "mask": ((9, length), np.dtype(bool)),
        }
        assert batch["mask"].any(axis=1).all()
        assert batch["mask"][0].all()
        assert not batch["input_ids"][~batch["mask"]].any()
    assert tried.batch("image", 3, 0)["pixels"].shape == (3, 32, 32, 1)


def test_the_large_models_have_the_sizes_that_their_names_say() -> None:
    parameters = {
        name: sum(p.numel() for p in embedder.encoder.parameters()) / 1e6
        for name, (embedder, _) in large_embedders().items()
    }
    assert 21 < parameters["image"] < 23  # ViT-S/16
    assert 22 < parameters["text"] < 23  # MiniLM-L6
    embedder, preprocess = large_embedders()["text"]
    batch = preprocess.collate([preprocess.prepare("1 2 3"), preprocess.prepare("4")])
    tokens, embeddings = embedder.embed_arrays(batch, 4)
    assert tokens.shape == embeddings.shape == (2, 4, 512)
    alone, _ = embedder.embed_arrays({name: array[1:, :1] for name, array in batch.items()}, 4)
    assert np.abs(alone - tokens[1:]).max() < 1e-5
    assert TOKEN_INDEX not in batch


@pytest.mark.slow
def test_the_rehearsal_runs_as_a_file(tmp_path: Path) -> None:
    """Training, a kill, export, engines for another GPU, parity and latency, from another folder than the tree's."""
    output = tmp_path / "gpu.json"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu"), "--cpu", "-o", str(output)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results: dict[str, Any] = json.loads(output.read_text())
    assert results["failed"] == []
    assert results["training"]["steps"] == 16
    assert results["killed_and_resumed"]["killed"]
    assert 0 < results["killed_and_resumed"]["at_step"] < results["killed_and_resumed"]["last_step"] == 16
    assert results["killed_and_resumed"]["largest_difference"] == 0
    assert results["process_group"]["backend"] == "gloo"
    assert results["process_group"]["largest_difference"] == 0
    assert {row["precision"] for row in results["parity"]} == {"fp32", "fp16"}
    assert {row["candidate"] for row in results["latency"]} == {"ort-cpu", "eager"}
    assert all(0 < row["median_ms"] <= row["p99_ms"] for row in results["latency"])
    # Where it is not installed, that is said.
    said = [entry["why"] for entry in results["could_not"]]
    assert results.get("engines") or "tensorrt_rtx is not installed" in said
