"""A run's numbers in the real Weights & Biases (offline) and MLflow (a file of SQLite)."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxtalk.artifacts.files import Identity
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.errors import UsageError
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.records.log import RunLog
from fluxtalk.train.records.trackers import open_trackers
from fluxtalk.train.run import fit

OPTIONS = {"batch_size": 32, "recipe": "specified"}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without network, into this test's folder."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()  # it reads its variables once a process
    yield
    wandb.teardown()


def _log(folder: Path, name: str, *steps: int) -> None:
    log = RunLog(Identity(), RunFolder(folder), trackers=open_trackers([name], folder, OPTIONS))
    for step in steps:
        log.record("train", {"step": step, "loss": 1 / step})
    log.record("validation", {"step": steps[-1], "recall": {"text->image": {"2": {"10": 0.5}}}})
    log.record("begin", {"sentence": "without a step"})
    log.close()


@pytest.mark.usefixtures("offline")
def test_weights_and_biases_offline(tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    _log(tmp_path / "run", "wandb", 1, 2)
    _log(tmp_path / "run", "wandb", 2, 3)  # as a resumed run goes on
    rows: list[dict[str, Any]] = []
    ids = set()
    for file in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
        for data in _frames(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.run.run_id:
                ids.add(record.run.run_id)
                assert (record.run.display_name, record.run.project) == ("run", "fluxtalk")
            if record.history.item:
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    assert ids == {json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]}
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [
        (step, 1 / step) for step in (1, 2, 2, 3)
    ]
    assert [row["step"] for row in rows if row.get("validation/text-to-image/R10/k2") == 0.5] == [2, 3]


def _frames(data: bytes) -> Iterator[bytes]:
    """Messages of W&B's file, for which it has no reader any more: LevelDB's log after a header of 7 bytes."""
    at, message = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # filled up with zeros
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield message
            message = b""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_in_a_file_of_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic", reason="MLflow's databases need alembic")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    _log(tmp_path / "run", "mlflow", 1, 2)
    _log(tmp_path / "run", "mlflow", 3)
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("fluxtalk").experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params == {"batch_size": "32", "recipe": "specified"}
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / step) for step in (1, 2, 3)]
    assert found.data.metrics["validation/text-to-image/R10/k2"] == 0.5


@pytest.mark.usefixtures("offline")
def test_a_training_is_tracked(train_config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(train_config, output_dir=str(tmp_path / "runs"), log_name="run", epochs=1)
    assert fit(dataclasses.replace(config, track="wandb")).finished
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_what_is_no_tracker_is_a_sentence(train_config: TrainConfig) -> None:
    with pytest.raises(UsageError, match="--track is wandb, mlflow or wandb,mlflow; got 'neptune'"):
        dataclasses.replace(train_config, track="neptune")


def test_a_missing_library_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UsageError, match=r"--track wandb needs wandb; pip install 'fluxtalk\[wandb\]'"):
        open_trackers(["wandb"], tmp_path, {})
