"""Tests that `bench.gpu` runs, and its reports of how they ended."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime
import pytest

from bench.gpu import device_tests as gpu_tests
from bench.gpu.device_tests import FILES, run_tests
from bench.gpu.report import Report
from tests.runtime.backends.test_gpu_sessions import provider

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "gpu.json", limit=100)


def made_test(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """One file instead of the project's."""
    path = folder / "test_made.py"
    path.write_text(f"import time\nimport pytest\n\n\n@pytest.mark.gpu\ndef test_made() -> None:\n    {body}\n")
    monkeypatch.setattr(gpu_tests, "FILES", (str(path),))


def test_the_files_are_those_with_the_mark() -> None:
    """Written at the start of a line: this file writes marked tests too."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    assert {file for file, text in texts.items() if re.search(r"^ *@?pytest\.mark\.gpu\b", text, re.M)} == set(FILES)


def test_a_skipped_test_could_not_be_done(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_test(tmp_path, monkeypatch, "pytest.skip('there is no such library')")
    found = report.part("tests", 0, lambda: run_tests(report))
    assert found is not None
    assert found["exit_code"] == 0
    assert not report.failed
    (entry,) = report.results["could_not"]
    assert entry["why"].endswith("there is no such library")


def test_a_failing_test_went_wrong(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_test(tmp_path, monkeypatch, "raise AssertionError('wrong')")
    report.part("tests", 0, lambda: run_tests(report))
    (failed,) = report.results["failed"]
    assert "1 failed" in failed["why"]
    assert "AssertionError: wrong" in failed["trace"]


def test_tests_that_take_too_long_could_not_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(tmp_path / "gpu.json", limit=1)
    made_test(tmp_path, monkeypatch, "time.sleep(60)")
    report.part("tests", 0, lambda: run_tests(report, least_s=3))
    assert not report.failed
    (entry,) = report.results["could_not"]
    assert entry == {"what": "tests", "why": "it was not done after 3 s, which is what --limit left"}


@pytest.mark.parametrize("backend", ["ort-cuda", "ort-tensorrt"])
def test_a_provider_that_does_not_start_is_skipped(
    backend: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-gpu names its providers, whether or not the libraries that they load are there."""
    named = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: named)
    with pytest.raises(pytest.skip.Exception, match=r"ONNX Runtime (could not start|cannot load)"):
        provider(backend, tmp_path_factory.mktemp("tiny"))
