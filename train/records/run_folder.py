"""Beginning in a run's folder: whether a run may, against other trainings, and what it writes there first."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from filelock import FileLock, Timeout

from fluxtalk.artifacts.files import Identity, write_atomically
from fluxtalk.artifacts.run import RunDescription, RunFolder, RunInfo, read_description
from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.option_types import spelled

_RESUMED_ANYWHERE = {
    "accum_steps", "bad_items_limit", "batch_size", "cache_dir", "data", "device", "output_dir", "log_name",
    "on_bad_item", "stage1_checkpoint", "track",
}  # fmt: skip
"""Options that may change when a run is resumed, as long as `fluxtalk.train.records.resume` finds the same data,
encoders and global batch."""


def check_run_folder(config: TrainConfig, resume: bool) -> RunFolder:
    """Check that a run may begin, or go on, in its folder; nothing is written.

    A run that ended before its first checkpoint left nothing to resume: its folder counts as empty.

    Raises:
        UsageError: it is not empty and ``resume`` is off, or holds a run with other options.
        CheckpointError: ``resume`` is on and there is nothing to resume from.
    """
    folder = RunFolder(Path(config.output_dir) / config.log_name)
    if not resume:
        if not folder.is_free():
            going_on = "continue it with --resume, or choose" if folder.last.is_file() else "choose"
            raise UsageError(f"{folder.root} is not empty; {going_on} another --output-dir or --log-name.")
        return folder
    if not folder.last.is_file():
        otherwise = "run without --resume" if folder.is_free() else "name the run's --output-dir and --log-name"
        raise CheckpointError(
            f"There is nothing to resume in {folder.root}: {folder.last} does not exist; {otherwise}."
        )
    before, now = read_description(folder.root).options, config.to_dict()
    changed = sorted(name for name in now if name not in _RESUMED_ANYWHERE and before.get(name) != now[name])
    if changed:
        listed = ", ".join(f"{spelled(name)} {before.get(name)} became {now[name]}" for name in changed)
        raise UsageError(f"--resume continues {folder.root} with the options it began with; here {listed}.")
    return folder


@contextmanager
def lock_run_folder(folder: RunFolder) -> Iterator[None]:
    """Hold a run's folder, made if it is missing, against other trainings.

    The operating system releases the lock when the process ends, however it ends; the lock's file stays.

    Raises:
        UsageError: another training holds it.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"Another training is writing to {folder.root}; wait until it ends, or choose another --log-name."
        ) from None
    try:
        yield
    finally:
        lock.release()


def write_description(folder: RunFolder, config: TrainConfig, identity: Identity, info: RunInfo) -> None:
    """Write run.json and METADATA.txt."""
    RunDescription(folder, identity, config.to_dict(), info, environment()).write()
    lines = {
        "Experiment": identity.experiment_id,
        "Implementation": identity.implementation,
        "Implementation version": identity.implementation_version,
        "Log prefix": identity.log_prefix,
        "Git revision": identity.git_revision or "unknown",
        "Started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **{name.replace("_", " ").capitalize(): value for name, value in info.to_dict().items()},
    }
    write_atomically(folder.metadata, "".join(f"{name}: {value}\n" for name, value in lines.items()))


def environment() -> dict[str, Any]:
    """Describe the machine: versions, processor, threads, accelerator."""
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
