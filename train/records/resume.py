"""Whether a run may go on with what was read, and that it did."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fluxtalk.artifacts.files import write_atomically, write_json
from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.model.checkpoints.run import read_run_config
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.records.run_folder import RunFolder


def require_same_run(folder: RunFolder, data: str, found: Mapping[str, Any]) -> None:
    """Refuse to go on with other data, encoders or global batches than a run began with.

    Where data and encoders lie may have changed, and how many processes and forward passes share a global batch.

    Args:
        data: what the data set is called.
        found: ``data_hash``, ``encoder_hashes``, ``global_batch`` and ``processes`` of this start.

    Raises:
        UsageError: the data or the global batch is another.
        CheckpointError: the encoder of a modality is another.
    """
    before = read_run_config(folder.root)["facts"]
    if before["data_hash"] != found["data_hash"]:
        raise UsageError(
            f"--resume continues {folder.root} on the data it began with, and {data} holds something "
            "else; name that data with --data, or begin another run."
        )
    hashes, others = before["encoder_hashes"], found["encoder_hashes"]
    changed = sorted(name for name in hashes.keys() | others.keys() if hashes.get(name) != others.get(name))
    if changed:
        raise CheckpointError(
            f"--resume continues {folder.root} with the encoders it began with, and that of {', '.join(changed)} is "
            "another; name the stage 1 checkpoint of that run with --stage1_checkpoint, or begin another run."
        )
    if before["global_batch"] != found["global_batch"]:
        raise UsageError(
            f"--resume continues {folder.root} with {before['global_batch']} pairs in each step, on "
            f"{before['processes']} process(es), and {found['processes']} make it {found['global_batch']} here; "
            "start as many processes, or choose the --batch_size that keeps it."
        )


def record_resumption(folder: RunFolder, config: TrainConfig, facts: Mapping[str, Any], step: int) -> None:
    """Write into run.json what a run goes on with, and into METADATA.txt when and where.

    Args:
        facts: as `write_description` takes them.
        step: the step that it goes on after.
    """
    content = read_run_config(folder.root)
    write_json(folder.description, {**content, "options": config.to_dict(), "facts": dict(facts)})
    shared = f"{facts['processes']} process(es) with a batch size of {config.batch_size} on {facts['device']}"
    resumed = f"Resumed: {time.strftime('%Y-%m-%dT%H:%M:%S%z')}, after step {step}, by {shared}\n"
    before = folder.metadata.read_text() if folder.metadata.is_file() else ""
    write_atomically(folder.metadata, before + resumed)
