"""Resuming a run: refusing other inputs than it began with, and recording that it goes on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from fluxtalk.artifacts.files import write_atomically
from fluxtalk.artifacts.run import RunFolder, RunInfo, read_description
from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.train.config import TrainConfig


def require_same_run(
    folder: RunFolder,
    data: str,
    *,
    data_hash: str,
    encoder_hashes: Mapping[str, str],
    global_batch: int,
    processes: int,
) -> None:
    """Refuse to go on with other data, encoders or global batches than a run began with.

    The paths of data and encoders may have changed, and how many processes and forward passes share a global batch.

    Args:
        data: name of the data set.
        data_hash: `PairDataset.content_hash` of this start.
        encoder_hashes: modality to `Stage1Modality.content_hash` of this start.
        global_batch: pairs of a step over all ``processes``.

    Raises:
        UsageError: the data or the global batch is another.
        CheckpointError: the encoder of a modality is another.
    """
    before = read_description(folder.root).info
    if before.data_hash != data_hash:
        raise UsageError(
            f"--resume continues {folder.root} on the data it began with, and {data} holds something "
            "else; name that data with --data, or begin another run."
        )
    hashes = before.encoder_hashes
    changed = sorted(n for n in hashes.keys() | encoder_hashes.keys() if hashes.get(n) != encoder_hashes.get(n))
    if changed:
        raise CheckpointError(
            f"--resume continues {folder.root} with the encoders it began with, and that of {', '.join(changed)} is "
            "another; name the stage 1 checkpoint of that run with --stage1-checkpoint, or begin another run."
        )
    if before.global_batch != global_batch:
        raise UsageError(
            f"--resume continues {folder.root} with {before.global_batch} pairs in each step, on "
            f"{before.processes} process(es), and {processes} make it {global_batch} here; "
            "start as many processes, or choose the --batch-size that keeps it."
        )


def record_resumption(folder: RunFolder, config: TrainConfig, info: RunInfo, step: int) -> None:
    """Write into run.json what a run goes on with, and into METADATA.txt when and where.

    Args:
        step: the step that it goes on after.
    """
    dataclasses.replace(read_description(folder.root), options=config.to_dict(), info=info).write()
    shared = f"{info.processes} process(es) with a batch size of {config.batch_size} on {info.device}"
    resumed = f"Resumed: {time.strftime('%Y-%m-%dT%H:%M:%S%z')}, after step {step}, by {shared}\n"
    before = folder.metadata.read_text(encoding="utf-8") if folder.metadata.is_file() else ""
    write_atomically(folder.metadata, before + resumed)
