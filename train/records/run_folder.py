"""A run's folder: what lies where, and whether a new run may use it.

::

    OUTPUT_DIR/LOG_NAME/
      METADATA.txt         who made this run, in plain text
      run.json             every option, the hashes of encoders and data, and what it ran on
      train.log            what was printed
      metrics.jsonl        one record per line: training, validation, test
      tensorboard/         the numbers again, where tensorboard is installed
      checkpoints/last.safetensors    with the training state, for --resume
      checkpoints/best.safetensors    the best by validation
      results.json         the scores of the best head on the test split
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from fluxtalk.artifacts.files import Identity, write_atomically, write_json
from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.model.checkpoints.run import FORMAT, read_run_config
from fluxtalk.train.config import TrainConfig

SCHEMA_VERSION = 1
_RESUMED_ANYWHERE = {
    "accum_steps", "batch_size", "cache_dir", "data", "device", "output_dir", "log_name", "stage1_checkpoint"
}  # fmt: skip
"""Options that may change when a run is resumed, as long as `fluxtalk.train.records.resume` finds the same data,
encoders and global batch."""
_BEFORE_TRAINING = {"METADATA.txt", "checkpoints", "run.json", "tensorboard", "train.log"}


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    root: Path

    @property
    def description(self) -> Path:
        return self.root / "run.json"

    @property
    def metadata(self) -> Path:
        return self.root / "METADATA.txt"

    @property
    def log(self) -> Path:
        return self.root / "train.log"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def last(self) -> Path:
        return self.root / "checkpoints" / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.root / "checkpoints" / "best.safetensors"


def open_run(config: TrainConfig, resume: bool) -> RunFolder:
    """The run's folder, checked but not yet written.

    A run that ended before its first checkpoint left nothing to resume: its folder counts as empty.

    Raises:
        UsageError: it is not empty and ``resume`` is off, or holds a run with other options.
        CheckpointError: ``resume`` is on and there is nothing to resume from.
    """
    folder = RunFolder(Path(config.output_dir) / config.log_name)
    if not resume:
        if not _is_free(folder):
            going_on = "continue it with --resume, or choose" if folder.last.is_file() else "choose"
            raise UsageError(f"{folder.root} is not empty; {going_on} another --output_dir or --log_name.")
        return folder
    if not folder.last.is_file():
        otherwise = "run without --resume" if _is_free(folder) else "name the run's --output_dir and --log_name"
        raise CheckpointError(
            f"There is nothing to resume in {folder.root}: {folder.last} does not exist; {otherwise}."
        )
    before = read_run_config(folder.root)["options"]
    now = config.to_dict()
    changed = sorted(name for name in now if name not in _RESUMED_ANYWHERE and before.get(name) != now[name])
    if changed:
        listed = ", ".join(f"--{name} {before.get(name)} became {now[name]}" for name in changed)
        raise UsageError(f"--resume continues {folder.root} with the options it began with; here {listed}.")
    return folder


def _is_free(folder: RunFolder) -> bool:
    """Whether a new run may begin here: there is nothing but what a run writes before its first checkpoint."""
    if not folder.root.is_dir():
        return not folder.root.exists()
    found = {path.name for path in folder.root.iterdir() if not _is_unfinished(path)}
    checkpoints = folder.last.parent
    kept = checkpoints.is_dir() and not all(map(_is_unfinished, checkpoints.iterdir()))
    return found <= _BEFORE_TRAINING and not kept


def _is_unfinished(path: Path) -> bool:
    """Whether a file was being written when its process was killed."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def write_description(folder: RunFolder, config: TrainConfig, identity: Identity, facts: Mapping[str, Any]) -> None:
    """Write run.json (options, facts, environment) and METADATA.txt.

    Args:
        facts: what was found rather than asked: data set, hashes, world size, device.
    """
    write_json(
        folder.description,
        {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            **identity.fields(),
            "options": config.to_dict(),
            "facts": dict(facts),
            "environment": environment(),
        },
    )
    lines = {
        "Experiment": identity.experiment_id,
        "Implementation": identity.implementation,
        "Implementation version": identity.implementation_version,
        "Log prefix": identity.log_prefix,
        "Git revision": identity.git_revision or "unknown",
        "Started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **{name.replace("_", " ").capitalize(): value for name, value in facts.items()},
    }
    write_atomically(folder.metadata, "".join(f"{name}: {value}\n" for name, value in lines.items()))


def environment() -> dict[str, Any]:
    """What a run ran on: versions, processor, threads, accelerator."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "numpy": numpy.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "accelerator": torch.cuda.get_device_name() if cuda else None,
    }
