"""Training on the GPU: from start to end, killed and resumed, and in a process group.

``bench.gpu.agreement`` says what a resumed run and a process group are held to.
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fluxtalk.artifacts.run import RunFolder
from fluxtalk.datasets import glyphs
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
STAGE1 = ROOT / "bench" / "stage1" / "glyphs.pth"
LONGEST_S = 600.0
"""A training of a minute that takes longer hangs."""


@dataclass(frozen=True)
class Training:
    """A training run: its folder, device and size."""

    work: Path
    device: str
    small: bool
    """A few hundred pairs and 4 epochs instead of 40 of all of `glyphs`."""
    environment: dict[str, str] = field(
        default_factory=lambda: {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
    )
    """Environment of subprocesses, in which the package is found in the source tree."""

    @property
    def config(self) -> TrainConfig:
        """The demo's options, in bfloat16."""
        common: dict[str, Any] = {
            "stage1_checkpoint": str(STAGE1),
            "output_dir": str(self.work / "runs"),
            "log_name": "whole",
            "data": str(small_table(self.work)) if self.small else "glyphs",
            "cache_dir": str(self.work / "cache"),
            "device": self.device,
            "precision": "bf16",
            "dim": 192,
            "heads": 8,
        }
        if self.small:
            return TrainConfig(**common, batch_size=64, epochs=4, eval_every=2, checkpoint_every=3)
        return TrainConfig(**common, batch_size=1024, epochs=40, eval_every=10, checkpoint_every=20, learning_rate=2e-3)

    def folder(self, config: TrainConfig) -> RunFolder:
        """Folder of a run."""
        return RunFolder(Path(config.output_dir) / config.log_name)


def train(training: Training) -> dict[str, Any]:
    """One whole run: how fast, and what it recalls.

    Raises:
        RuntimeError: it fails.
    """
    config = training.config
    started = time.monotonic()
    _finish(_command(config), training.environment)
    folder = training.folder(config)
    steps = [record for record in _records(folder) if record.get("kind") == "train"]
    return {
        "seconds": round(time.monotonic() - started, 1),
        "steps": int(steps[-1]["step"]),
        "pairs_per_s": max(float(record["pairs_per_s"]) for record in steps),
        "recall": json.loads(folder.results.read_text())["recall"],
    }


def kill_and_resume(training: Training) -> dict[str, Any]:
    """A run killed with SIGKILL after a third and resumed: how far its head is from that of one without interruption.

    Both in float32: in bfloat16 a last bit, which another order of sums changes, grows into the second decimal.

    Returns:
        Whether it was ``killed``, ``at_step`` of ``last_step``, and the ``largest_difference`` of a weight.

    Raises:
        RuntimeError: one fails, does not get that far, cannot be resumed, or has weights that are not finite.
    """
    plain = replace(training.config, log_name="uninterrupted", precision="fp32")
    _finish(_command(plain), training.environment)
    config = replace(plain, log_name="killed")
    folder, whole = training.folder(config), training.folder(plain)
    last = _last_step(whole)
    ends = time.monotonic() + LONGEST_S
    with (training.work / "killed.log").open("w") as log:
        process = subprocess.Popen(_command(config), stdout=log, stderr=log, env=training.environment, cwd=ROOT)
        try:
            while process.poll() is None and _last_step(folder) < last // 3:
                if time.monotonic() > ends:
                    raise RuntimeError(f"the run to kill is at step {_last_step(folder)} after {LONGEST_S:.0f} s")
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    at = _last_step(folder)
    _finish([*_command(config), "--resume"], training.environment)
    first, second = load_head(whole.last).weights, load_head(folder.last).weights
    difference = largest_difference((first[name], second[name]) for name in first)
    killed = process.returncode == -signal.SIGKILL
    return {"killed": killed, "at_step": at, "last_step": last, "largest_difference": difference}


def process_group(training: Training) -> dict[str, Any]:
    """NCCL (on a CPU: Gloo) with one process, through torchrun.

    Raises:
        RuntimeError: it fails.
    """
    config, output = training.work / "nccl.json", training.work / "nccl-result.json"
    # In float32: what is compared is the group's work, not rounding.
    config.write_text(json.dumps(replace(training.config, log_name="group", precision="fp32").to_dict()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    _finish([*command, "-m", "bench.gpu.process_group", str(config), str(output)], training.environment)
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def largest_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest difference of an element over pairs of equally shaped tensors.

    Raises:
        RuntimeError: one of them holds NaN or infinity.
    """
    found = [(first.float() - second.float()).abs().max() for first, second in pairs]
    largest = float(torch.stack(found).max())  # which NaN passes through
    if not math.isfinite(largest):
        raise RuntimeError("the weights hold numbers that are not finite")
    return largest


def small_table(folder: Path, train_pairs: int = 256, others: int = 48) -> Path:
    """A table of a few glyphs, as a user's folder would have it."""
    path = folder / "pairs" / "pairs.csv"
    if path.is_file():
        return path
    data = glyphs.load(folder / "cache")
    path.parent.mkdir(parents=True)
    rows = [["image", "text", "id", "split"]]
    for split, count in (("train", train_pairs), ("validation", others), ("test", others)):
        part = data.split(split)
        images = part.items["image"]
        for group in range(count):
            name = f"{split}-{group}.png"
            Image.fromarray(images.values[(images.groups == group).nonzero()[0][0]]).save(path.parent / name)
            rows.append([name, str(part.items["text"].values[group]), str(part.ids[group]), split])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def _command(config: TrainConfig) -> list[str]:
    parts = [sys.executable, "-m", "fluxtalk.train"]
    for option in fields(config):
        value = getattr(config, option.name)
        if value != option.default:
            parts += [f"--{option.name}", str(value)]
    return parts


def _finish(command: list[str], environment: dict[str, str], longest_s: float = LONGEST_S) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT) as process:
        try:
            _, errors = process.communicate(timeout=longest_s)
        except subprocess.TimeoutExpired:
            _end(process)
            raise RuntimeError(f"{' '.join(command[1:4])} did not end within {longest_s:.0f} s") from None
        except BaseException:
            _end(process)
            raise
    if process.returncode != 0:
        last = [line for line in errors.strip().splitlines() if line.strip()][-1:]
        raise RuntimeError(f"{' '.join(command[1:4])} ended with {process.returncode}: {' '.join(last)}")


def _end(process: subprocess.Popen[str], patience_s: float = 40.0) -> None:
    """End a process, with time to end its own first: torchrun waits 30 s for its workers before it kills them."""
    process.terminate()
    try:
        process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()


def _records(folder: RunFolder) -> list[dict[str, Any]]:
    if not folder.metrics.is_file():
        return []
    records = []
    for line in folder.metrics.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # the line that is being written
            break
    return records


def _last_step(folder: RunFolder) -> int:
    return max((int(record.get("step", 0)) for record in _records(folder)), default=0)
