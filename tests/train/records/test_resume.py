"""Beginning and resuming in a folder, and the lock on it."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fluxtalk.train.run
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.errors import CheckpointError, FluxTalkError, UsageError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.checkpoints.stage1 import Stage1, Stage1Modality, save_stage1
from fluxtalk.model.encoders import EncoderSpec
from fluxtalk.preprocess import FeaturesPreprocessor
from fluxtalk.train import Callback, TrainConfig, fit
from fluxtalk.train.records.resume import require_same_run
from fluxtalk.train.records.run_folder import check_run_folder, lock_run_folder
from tests.forked import in_processes

DIM = 6


def write_data(folder: Path, seed: int) -> None:
    """Precomputed features of 60 ids in two modalities, which share what an id is."""
    generator = np.random.default_rng(seed)
    for i in range(60):
        shared = generator.standard_normal((1, DIM))
        for modality in ("left", "right"):
            (folder / modality).mkdir(parents=True, exist_ok=True)
            values = shared + 0.3 * generator.standard_normal((2, DIM))
            np.save(folder / modality / f"id{i:02d}.npy", values.astype(np.float32))


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Options of a run of a moment on such data."""
    write_data(tmp_path / "data", 0)
    part = Stage1Modality(EncoderSpec(f"features:{DIM}", {}, DIM), {}, FeaturesPreprocessor(DIM))
    save_stage1(Stage1({"left": part, "right": part}, data=str(tmp_path / "data")), tmp_path / "stage1.pth")
    return TrainConfig(
        stage1_checkpoint=str(tmp_path / "stage1.pth"), output_dir=str(tmp_path / "runs"), log_name="run",
        cache_dir=str(tmp_path / "cache"), batch_size=16, epochs=3, eval_every=1, dim=16, heads=2, device="cpu",
    )  # fmt: skip


class StopAt(Callback):
    """Sends a signal in a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self._step = step
        self._number = number

    def on_step(self, step: int, losses: Mapping[str, float]) -> None:
        if step == self._step:
            os.kill(os.getpid(), self._number)


def stopped(config: TrainConfig, step: int = 4, number: signal.Signals = signal.SIGTERM) -> RunFolder:
    result = fit(config, callbacks=[StopAt(step, number)])
    assert not result.finished
    assert result.exit_code == 128 + number
    return result.folder


def content(folder: RunFolder) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(folder.description.read_text())
    return values


def test_sigusr1_writes_a_checkpoint(config: TrainConfig) -> None:
    """As SIGTERM does, of which test_cli.py has the command; schedulers send it before they end a job."""
    folder = stopped(config, 4, signal.SIGUSR1)
    assert load_head(folder.last).progress["step"] == 4


def test_a_run_does_not_go_on_with_other_data(config: TrainConfig, tmp_path: Path) -> None:
    folder = stopped(config)
    before = {path: path.read_bytes() for path in (folder.description, folder.last, folder.metrics)}
    write_data(tmp_path / "data", 1)
    with pytest.raises(UsageError, match="on the data it began with"):
        fit(config, resume=True)
    assert {path: path.read_bytes() for path in before} == before
    write_data(tmp_path / "data", 0)
    assert fit(config, resume=True).finished


def test_a_run_does_not_go_on_with_other_encoders(config: TrainConfig, tmp_path: Path) -> None:
    folder = stopped(config)
    facts = content(folder)["facts"]
    found = {name: facts[name] for name in ("data_hash", "encoder_hashes", "global_batch", "processes")}
    require_same_run(folder, "data", **found)
    for hashes in ({**facts["encoder_hashes"], "right": "0"}, {"left": facts["encoder_hashes"]["left"]}):
        with pytest.raises(CheckpointError, match="that of right is another"):
            require_same_run(folder, "data", **{**found, "encoder_hashes": hashes})


def test_a_run_goes_on_with_the_global_batch_it_began_with(config: TrainConfig) -> None:
    """Half of it in two passes is the same batch; half of it is not."""
    folder = stopped(config)
    with pytest.raises(UsageError, match=r"16 pairs in each step, on 1 process\(es\), and 1 make it 8 here"):
        fit(dataclasses.replace(config, batch_size=8), resume=True)
    assert load_head(folder.last).progress["step"] == 4
    assert fit(dataclasses.replace(config, batch_size=8, accum_steps=2), resume=True).finished
    options, facts = content(folder)["options"], content(folder)["facts"]
    assert (options["batch_size"], options["accum_steps"], facts["global_batch"]) == (8, 2, 16)
    metadata = folder.metadata.read_text()
    assert "after step 4, by 1 process(es) with a batch size of 8 on cpu" in metadata
    assert metadata.startswith("Experiment: ")


def test_other_processes_go_on_with_the_same_global_batch(config: TrainConfig, tmp_path: Path) -> None:
    """Two of them with half of the rows each; with all of the rows each it would be another batch."""
    folder = stopped(config)
    facts = content(folder)["facts"]
    with pytest.raises(UsageError, match=r"on 1 process\(es\), and 2 make it 32 here"):
        require_same_run(
            folder,
            "data",
            data_hash=facts["data_hash"],
            encoder_hashes=facts["encoder_hashes"],
            processes=2,
            global_batch=32,
        )
    (tmp_path / "two.json").write_text(json.dumps(dataclasses.replace(config, batch_size=8).to_dict()))
    in_processes("tests.train.distributed_steps:resume", [(2, (tmp_path / "two.json",))], tmp_path)
    assert (content(folder)["facts"]["processes"], content(folder)["options"]["batch_size"]) == (2, 8)
    assert load_head(folder.last).progress["step"] == load_head(folder.last).progress["steps"]


def test_a_full_disk_at_the_first_checkpoint_leaves_a_folder_to_begin_in(config: TrainConfig) -> None:
    """Every sentence advises something that works."""
    folder = RunFolder(Path(config.output_dir) / config.log_name)
    fit(dataclasses.replace(config, log_name="encodes"))
    size = RunFolder(folder.root.with_name("encodes")).last.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="Free some space, then run again without --resume"):
            fit(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert folder.description.is_file()
    assert not folder.last.exists()
    with pytest.raises(CheckpointError, match="run without --resume"):
        fit(config, resume=True)
    (folder.last.parent / ".last.safetensors.x.tmp").write_text("killed while this was written")
    assert fit(config).finished


def test_what_no_run_left_is_not_written_over(config: TrainConfig) -> None:
    folder = RunFolder(Path(config.output_dir) / config.log_name)
    (folder.root / "checkpoints").mkdir(parents=True)
    check_run_folder(config, resume=False)
    for name in ("notes.txt", "metrics.jsonl", "checkpoints/best.safetensors"):
        (folder.root / name).write_text("mine")
        with pytest.raises(UsageError, match="is not empty; choose another --output-dir or --log-name"):
            check_run_folder(config, resume=False)
        with pytest.raises(CheckpointError, match="name the run's --output-dir and --log-name"):
            check_run_folder(config, resume=True)
        (folder.root / name).unlink()


class Second(Callback):
    """Starts trainings in the same folder in a step."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.refused: list[str] = []

    def on_step(self, step: int, losses: Mapping[str, float]) -> None:
        for resume in (False, True) if step == 4 else ():
            try:
                fit(self._config, resume)
            except FluxTalkError as error:
                self.refused.append(str(error))


def test_a_run_at_work_is_left_alone(config: TrainConfig) -> None:
    second = Second(config)
    result = fit(config, callbacks=[second])
    assert result.finished
    new, resumed = second.refused
    assert "is not empty" in new
    assert "Another training is writing to" in resumed
    records = [json.loads(line) for line in result.folder.metrics.read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "train"] == [3, 6, 9]
    assert fit(config, resume=True).finished


@pytest.mark.parametrize("finished", [True, False])
def test_of_two_that_begin_together_one_trains(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """Both found the folder empty; the other one took it first, and is still at work or has ended since."""
    build, folder = fluxtalk.train.run.build_trainer, RunFolder(Path(config.output_dir) / config.log_name)

    def late(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(fluxtalk.train.run, "build_trainer", build)
        if finished:
            assert fit(config).finished
        else:
            other.__enter__()
        return build(*arguments, **named)

    monkeypatch.setattr(fluxtalk.train.run, "build_trainer", late)
    other = lock_run_folder(folder)
    with pytest.raises(UsageError, match="is not empty" if finished else "Another training is writing to"):
        fit(config)
    assert finished == folder.results.is_file()
    if not finished:
        other.__exit__(None, None, None)
        assert fit(config).finished


def test_kill_9_lets_go_of_the_folder(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.train.records.run_folder import lock_run_folder
with lock_run_folder(RunFolder(Path({str(tmp_path)!r}))):
    print("held", flush=True)
    input()
"""
    folder = RunFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="Another training"), lock_run_folder(folder):
            pass
        holder.kill()
        holder.wait()
    with lock_run_folder(folder):
        assert folder.lock.is_file()
