"""`bench.gpu.training`: what it takes for a hang, and for a difference."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.gpu import training as gpu_training
from bench.gpu.training import Training, kill_and_resume, largest_difference


def test_a_command_that_hangs_is_ended() -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"^-c import time; time\.sleep\(60\) did not end within 1 s$"):
        gpu_training._finish([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), longest_s=1)
    assert time.monotonic() - started < 20


def test_a_command_that_fails_says_its_last_line() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    with pytest.raises(RuntimeError, match=r"ended with 1: no such thing$"):
        gpu_training._finish(command, dict(os.environ))


def test_a_run_that_does_not_get_to_be_killed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path, "cpu", True)
    monkeypatch.setattr(gpu_training, "small_table", lambda folder: tmp_path / "pairs.csv")
    monkeypatch.setattr(gpu_training, "LONGEST_S", 0.5)
    monkeypatch.setattr(gpu_training, "_finish", lambda command, environment: None)
    monkeypatch.setattr(gpu_training, "_last_step", lambda folder: 16 if folder.root.name == "uninterrupted" else 0)
    hang = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(gpu_training, "_command", lambda config: hang)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="the run to kill is at step 0 after 0 s"):
        kill_and_resume(training)
    assert time.monotonic() - started < 20


def test_the_largest_difference_does_not_lose_nan() -> None:
    one, nan = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    assert largest_difference([(one, one), (one, one + 0.25)]) == 0.25
    for pairs in ([(one, one), (one, nan)], [(nan, one), (one, one)]):
        with pytest.raises(RuntimeError, match="not finite"):
            largest_difference(pairs)


def test_the_small_training_has_the_epochs_that_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_training, "small_table", lambda folder: tmp_path / "pairs.csv")
    small, whole = Training(tmp_path, "cpu", True), Training(tmp_path, "cpu", False)
    assert (small.config.epochs, whole.config.epochs) == (4, 40)
    assert replace(small.config, log_name="other").epochs == 4
