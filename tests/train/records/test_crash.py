"""Crashes: kill -9 at any moment and resume is the uninterrupted run; a full disk loses nothing older."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxtalk.artifacts.files import Identity
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.errors import CheckpointError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit
from tests.train.in_memory import in_memory_trainer, three_modalities

TIMING = {"time", "steps_per_s", "pairs_per_s", "wait_share"}


def command(config: TrainConfig) -> list[str]:
    """`fluxtalk-train` with every option that is not the default."""
    parts = [sys.executable, "-m", "fluxtalk.train"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is True:
            parts.append(f"--{field.name}")
        elif value != field.default:
            parts += [f"--{field.name}", str(value)]
    return parts


def records(folder: RunFolder) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


@pytest.mark.parametrize("targets", [(30,), pytest.param((10, 60, 110), marks=pytest.mark.slow)])
def test_kill_9_and_resume_is_the_uninterrupted_run(
    train_config: TrainConfig, tmp_path: Path, targets: tuple[int, ...]
) -> None:
    """Killed near these steps, at moments that nobody chose; weights, training state, scores and records are equal."""
    config = dataclasses.replace(
        train_config, output_dir=str(tmp_path / "whole"), epochs=40 if len(targets) > 1 else 20, eval_every=2,
        checkpoint_every=4, ema_decay=0.9,
        accum_steps=2, batch_size=12, complementary_objective="contrast", token_dropout=0.2, dropout=0.2,
    )  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert fit(config).finished
    killed = dataclasses.replace(config, output_dir=str(tmp_path / "killed"))
    folder, whole = (RunFolder(Path(c.output_dir) / c.log_name) for c in (killed, config))
    kills = 0
    for target in targets:
        resume = ["--resume"] if folder.last.is_file() else []
        process = subprocess.Popen(
            [*command(killed), *resume], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        while process.poll() is None and _last_step(folder) < target:
            time.sleep(0.01)
        time.sleep(random.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    with folder.metrics.open("a") as file:
        file.write('{"kind": "train", "st')  # a line that was being written
    assert fit(killed, resume=True).finished
    for name in ("last", "best"):
        first, second = load_head(getattr(whole, name)), load_head(getattr(folder, name))
        assert first.progress == second.progress
        for part in ("weights", "training_state"):
            tensors, others = getattr(first, part), getattr(second, part)
            assert set(tensors) == set(others)
            assert all(torch.equal(tensors[key], others[key]) for key in tensors), (name, part)
    assert records(folder) == records(whole)
    scores = [json.loads(f.results.read_text()) for f in (whole, folder)]
    assert {k: v for k, v in scores[0].items() if k != "seconds"} == {
        k: v for k, v in scores[1].items() if k != "seconds"
    }


def _last_step(folder: RunFolder) -> int:
    try:
        lines = folder.metrics.read_text().splitlines()
        return max((int(json.loads(line)["step"]) for line in lines), default=0)
    except (OSError, ValueError):
        return 0


def test_a_full_disk_loses_nothing_older(tmp_path: Path) -> None:
    """A file that may not grow fails as a full disk does: the checkpoint before stays, no part is left beside it."""
    config = TrainConfig("-", "-", "-", batch_size=8, dim=16, heads=2, device="cpu")
    trainer, folder = in_memory_trainer(config, three_modalities()), RunFolder(tmp_path)
    trainer.save(folder)
    before = folder.last.read_bytes()
    trainer.step()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=rf"{os.strerror(errno.EFBIG)}.*the checkpoint before is untouched"):
            trainer.save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert folder.last.read_bytes() == before
    assert [path.name for path in folder.last.parent.iterdir()] == ["last.safetensors"]
    assert load_head(folder.last).progress["step"] == 0
    trainer.save(folder)
    assert load_head(folder.last).progress["step"] == 1
    assert load_head(folder.last).identity == Identity()
