"""Any checkpoint of a run, scored on any data set with its modalities."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.run import RunFolder, read_description
from fluxtalk.errors import CheckpointError
from fluxtalk.model.checkpoints.head import HeadCheckpoint, load_head
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import join_process_group
from fluxtalk.train.inputs import Inputs, config_of_run, read_inputs
from fluxtalk.train.results.score import score_head

_AVERAGE = "average."
"""Prefix of the moving average's tensors in the training state."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A checkpoint, and the data set and split to score it on."""

    run: Path
    """OUTPUT_DIR/LOG_NAME of `fluxtalk-train`."""
    data: str | None = None
    """Data set; None takes the run's."""
    split: str = "test"
    checkpoint: str = "best"
    """`best` or `last` of the run, or the path of another head on the same encoders."""
    stage1_checkpoint: Path | None = None
    """Path of stage 1 now, if it was moved since training."""
    cache_dir: str | None = None
    """Folder for renderings and features; None takes the run's."""

    @property
    def path(self) -> Path:
        """Path of the checkpoint."""
        folder = RunFolder(self.run)
        return {"best": folder.best, "last": folder.last}.get(self.checkpoint, Path(self.checkpoint))


def evaluate(asked: Evaluation, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Score a checkpoint by retrieval.

    ``last`` of a run with a moving average is scored as validation does: by the average.

    Args:
        say: receives a line about every cache that is encoded.

    Returns:
        A record of kind ``evaluation``, as docs/runs.md describes it.

    Raises:
        ArtifactError: the run or a checkpoint cannot be used, or the head belongs to other encoders.
        UsageError: the data set is unknown, or lacks a modality.
        DataError: the data set cannot be used, or has no such split.
    """
    run = read_description(asked.run)
    config = config_of_run(run, asked.stage1_checkpoint, asked.data, asked.cache_dir)
    checkpoint = load_head(asked.path)
    # A run of a machine with a GPU can be looked at on one without.
    with join_process_group("cpu" if config.device == "cpu" else "auto") as (group, device):
        inputs = read_inputs(config, group, device, checkpoint.reductions).as_recorded(run.folder)
        _require_same_encoders(checkpoint, asked.path, inputs, config)
        for note in inputs.dataset.notes:
            say(f"warning: {note}")
        if inputs.dataset.left_out is None:
            inputs = inputs.admitted(config.bad_items, group, say, asked.split)
        scores = _scores(checkpoint, inputs, asked.split, say)
    if inputs.dataset.content_hash != run.info.data_hash:
        # Items seen in training are known for the run's own data only.
        del scores["recall_unseen"]
    return {
        "kind": "evaluation",
        "time": round(time.time(), 3),
        **checkpoint.identity.fields(),
        "step": checkpoint.progress.get("step"),
        "checkpoint": str(asked.path),
        "stage1_hash": checkpoint.stage1_hash,
        "data": inputs.dataset.name,
        "data_hash": inputs.dataset.content_hash,
        "split": asked.split,
        **inputs.dataset.told(),
        **scores,
    }


def _scores(checkpoint: HeadCheckpoint, inputs: Inputs, split: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Score on one split, with features reduced as the head was trained on them."""
    part = inputs.dataset.split(split)
    head = _averaged(checkpoint).build().to(inputs.device)
    return score_head(head, inputs.sources(split, say=say), part, ranking=True)


def _averaged(checkpoint: HeadCheckpoint) -> HeadCheckpoint:
    """Return the checkpoint with the moving average as weights, if its training state holds one."""
    state = checkpoint.training_state.items()
    average = {name.removeprefix(_AVERAGE): tensor for name, tensor in state if name.startswith(_AVERAGE)}
    return dataclasses.replace(checkpoint, weights=average) if average else checkpoint


def _require_same_encoders(checkpoint: HeadCheckpoint, path: Path, inputs: Inputs, config: TrainConfig) -> None:
    read, encoded = sorted(checkpoint.config.dims), sorted(inputs.stage1.modalities)
    if read != encoded:
        raise CheckpointError(
            f"{path} reads {', '.join(read)}, but {config.stage1_checkpoint} encodes {', '.join(encoded)}; "
            "name a head on these encoders with --checkpoint, or its own encoders with --stage1-checkpoint."
        )
    if checkpoint.stage1_hash != inputs.stage1.content_hash():
        raise CheckpointError(
            f"{path} was not trained on the encoders of {config.stage1_checkpoint}; "
            "name a head on them with --checkpoint, or its own stage 1 checkpoint with --stage1-checkpoint."
        )
