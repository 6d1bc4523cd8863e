"""A run's log, read back as a user, a program and TensorBoard read it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fluxtalk.artifacts.files import Identity
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.errors import ArtifactError, BackendError
from fluxtalk.train.records.log import RunLog

IDENTITY = Identity("mine", "other", git_revision="abc")
Events = dict[str, list[tuple[int, Any]]]


def _train(log: RunLog, steps: range) -> None:
    """Records as a run makes them: a loss in each step, a validation in every second."""
    for step in steps:
        log.record("train", {"epoch": step, "step": step, "total": 1 / (step + 1), "temperature": 0.07, "note": "text"})
        if step % 2 == 0:
            log.record("validation", {"epoch": step, "step": step, "score": step / 10, "recall": _recall(step / 10)})


def _recall(value: float) -> dict[str, dict[str, dict[str, float]]]:
    return {"text->image": {"1": {"1": value / 2, "10": value}, "2": {"1": value / 4, "10": value / 3}}}


def _finish(log: RunLog) -> None:
    log.record("test", {"step": 6, "recall": _recall(0.5)})
    log.close()


def _records(folder: RunFolder) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without their time."""
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def _events(folder: RunFolder) -> Events:
    """Read what TensorBoard would show: tag to (step, value)."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder.root / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_record_says_whose_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "run")
    log = RunLog(IDENTITY, folder)
    log.line("a line")
    _train(log, range(1, 3))
    log.close()
    assert capsys.readouterr().out == "[OTHER] a line\n"
    assert folder.log.read_text().endswith(" [OTHER] a line\n")
    assert [record["kind"] for record in _records(folder)] == ["train", "train", "validation"]
    for record in _records(folder):
        assert (record["experiment_id"], record["implementation"]) == ("mine", "other")
        assert (record["implementation_version"], record["git_revision"]) == ("1.0", "abc")


def test_only_the_first_process_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(IDENTITY, RunFolder(tmp_path / "run"), active=False)
    log.line("a line")
    _train(log, range(1, 3))
    log.cut_back(1)
    log.close()
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_the_numbers_by_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    log = RunLog(IDENTITY, folder)
    _train(log, range(1, 5))
    log.close()
    shown = _events(folder)
    assert shown["train/total"] == [(step, pytest.approx(1 / (step + 1))) for step in range(1, 5)]
    assert shown["validation/text-to-image/R10/k2"] == [(step, pytest.approx(step / 30)) for step in (2, 4)]
    assert set(shown) == {
        "train/total", "train/temperature", "validation/score",
        "validation/text-to-image/R1/k1", "validation/text-to-image/R10/k1",
        "validation/text-to-image/R1/k2", "validation/text-to-image/R10/k2",
    }  # fmt: skip


def test_a_killed_run_leaves_what_it_recorded(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from tests.train.records.test_log import IDENTITY, RunFolder, RunLog, _train
_train(RunLog(IDENTITY, RunFolder(pathlib.Path({str(tmp_path)!r}))), range(1, 41))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 9
    folder = RunFolder(tmp_path)
    assert [record["step"] for record in _records(folder) if record["kind"] == "train"] == list(range(1, 41))
    assert [step for step, _ in _events(folder)["train/total"]] == list(range(1, 41))


@pytest.mark.parametrize("torn", ["", '{"kind": "train", "step": 6, "to'])
def test_a_run_that_was_cut_back_equals_the_uninterrupted_one(tmp_path: Path, torn: str) -> None:
    whole, resumed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "resumed")
    log = RunLog(IDENTITY, whole)
    _train(log, range(1, 7))
    _finish(log)
    killed = RunLog(IDENTITY, resumed)
    _train(killed, range(1, 6))
    with resumed.metrics.open("a") as file:
        file.write(torn)
    # TensorBoard reads files by name: second, host, process, then a counter without leading zeros, so 10 precedes 9.
    time.sleep(1 - time.time() % 1)
    again = RunLog(IDENTITY, resumed)
    again.cut_back(3)
    assert [record["step"] for record in _records(resumed)] == [1, 2, 2, 3]
    _train(again, range(4, 7))
    _finish(again)
    assert _records(resumed) == _records(whole)
    assert _events(resumed) == _events(whole)
    assert not list(resumed.root.glob(".*"))


def test_a_finished_run_that_is_resumed_has_one_test_record(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    log = RunLog(IDENTITY, folder)
    _train(log, range(1, 7))
    _finish(log)
    once = _records(folder)
    again = RunLog(IDENTITY, folder)
    again.cut_back(6)
    _finish(again)
    assert _records(folder) == once


def test_a_whole_last_line_without_its_end_is_kept_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    log = RunLog(IDENTITY, folder)
    _train(log, range(1, 4))
    folder.metrics.write_text(folder.metrics.read_text().rstrip("\n"))
    log.cut_back(3)
    _train(log, range(4, 5))
    log.close()
    assert [record["step"] for record in _records(folder)] == [1, 2, 2, 3, 4, 4]


def test_cutting_back_before_anything_was_recorded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    log = RunLog(IDENTITY, folder)
    log.cut_back(0)
    log.close()
    assert not folder.metrics.exists()


def test_a_damaged_line_is_named_and_nothing_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    log = RunLog(IDENTITY, folder)
    _train(log, range(1, 4))
    damaged = folder.metrics.read_text().replace('"step": 1,', '"step": 1;')
    folder.metrics.write_text(damaged)
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl line 1 is not valid JSON"):
        log.cut_back(1)
    assert folder.metrics.read_text() == damaged
    log.close()


def test_nothing_happens_where_tensorboard_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    folder = RunFolder(tmp_path / "run")
    log = RunLog(IDENTITY, folder)
    _train(log, range(1, 5))
    log.cut_back(3)
    log.close()
    assert [path.name for path in folder.root.iterdir()] == ["metrics.jsonl"]
    assert capsys.readouterr() == ("", "")


def test_a_broken_tensorboard_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    # Without a version: torch takes it for one from before 1.15.
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    with pytest.raises(BackendError, match="tensorboard is installed but cannot be imported"):
        RunLog(IDENTITY, RunFolder(tmp_path / "run"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    folder = RunFolder(tmp_path / "run")
    log = RunLog(IDENTITY, folder)
    values: Mapping[str, Any] = {"step": 1, "total": value}
    with pytest.raises(ValueError, match="JSON"):
        log.record("train", values)
    _train(log, range(1, 2))
    log.close()
    assert [record["step"] for record in _records(folder)] == [1]
