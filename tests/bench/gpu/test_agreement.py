"""Failures that `bench.gpu` reports of a resumed run and of a process group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.gpu import cli as gpu
from bench.gpu import training as gpu_training
from bench.gpu.agreement import LARGEST_DIFFERENCE, check_group, check_resumed
from bench.gpu.report import Report

RESUMED = {"killed": True, "at_step": 5, "last_step": 16, "largest_difference": 0.0}
GROUP = {"backend": "nccl", "largest_difference": 0.0}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "gpu.json", limit=100)


def why(report: Report) -> str:
    return "; ".join(entry["why"] for entry in report.results["failed"])


@pytest.mark.parametrize(
    ("found", "device", "expected"),
    [
        ({}, "cpu", ""),
        ({"largest_difference": 1e-9}, "cpu", "a weight is 1.0e-09 from that of the uninterrupted run"),
        ({"largest_difference": 1e-9}, "cuda", ""),
        ({"largest_difference": 9.9}, "cuda", "a weight is 9.9e+00 from that of the uninterrupted run; at most 5e-04"),
        ({"killed": False, "at_step": 16}, "cuda", "the run ended by itself before it could be killed"),
        ({"at_step": 0}, "cuda", "killed at step 0 of 16"),
        ({"at_step": 16}, "cuda", "killed at step 16 of 16"),
    ],
)
def test_a_resumed_run(report: Report, found: dict[str, Any], device: str, expected: str) -> None:
    check_resumed(report, RESUMED | found, device)
    assert expected in why(report)
    assert report.failed == bool(expected)


@pytest.mark.parametrize(
    ("found", "device", "expected"),
    [
        ({}, "cuda", ""),
        ({"backend": "gloo"}, "cpu", ""),
        ({"backend": "gloo"}, "cuda", "it ran on gloo, not on nccl"),
        ({"largest_difference": 2 * LARGEST_DIFFERENCE["cuda"]}, "cuda", "from that of the same steps without a group"),
        ({"backend": "gloo", "largest_difference": 1e-9}, "cpu", "at most 0e+00 is allowed"),
    ],
)
def test_a_process_group(report: Report, found: dict[str, Any], device: str, expected: str) -> None:
    check_group(report, GROUP | found, device)
    assert expected in why(report)
    assert report.failed == bool(expected)


def test_the_script_asks_the_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what training found; the rest of the script is as it is."""
    monkeypatch.setattr(gpu, "_train", lambda report, training: {"steps": 16})
    monkeypatch.setattr(gpu, "_export", lambda report, training, folder: None)
    resumed, group = dict(RESUMED), GROUP | {"backend": "gloo"}
    monkeypatch.setattr(gpu_training, "kill_and_resume", lambda training: resumed)
    monkeypatch.setattr(gpu_training, "process_group", lambda training: group)
    command = ["--cpu", "-o", str(tmp_path / "gpu.json")]
    assert gpu.main(command) == 0
    resumed["killed"] = False
    assert gpu.main(command) == 1
    resumed["killed"] = True
    group["largest_difference"] = 9.9
    assert gpu.main(command) == 1
