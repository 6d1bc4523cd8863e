"""A finished training run, opened to embed or to export: its best head and the encoders under it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.run import RunDescription, RunFolder, read_description
from fluxtalk.datasets.data_paths import first_existing, with_absolute_path
from fluxtalk.errors import CheckpointError, DataError, UsageError
from fluxtalk.model.checkpoints.head import HeadCheckpoint, load_head
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1, trust_code
from fluxtalk.model.eager_embedder import EagerEmbedder


@dataclass(frozen=True)
class TrainedRun:
    """A run with a trained head."""

    description: RunDescription
    head: HeadCheckpoint
    stage1: Stage1
    results: dict[str, Any] | None
    """The content of results.json, once the run has been scored."""

    @property
    def root(self) -> Path:
        """OUTPUT_DIR/LOG_NAME."""
        return self.description.folder.root

    @property
    def data(self) -> str:
        """Name of the run's data set for ``--data``, with the path where it is now.

        Raises:
            DataError: ``--data`` named it, and it is neither where it was nor there as seen from the run.
        """
        return find_data(self.description) or self.stage1.data or self.description.info.data

    def embedder(self, modality: str, tokens: int | None = None) -> EagerEmbedder:
        """Build the encoder, feature reduction and head of a modality.

        Args:
            tokens: keep the first register tokens only; None keeps all.

        Raises:
            UsageError: the run has no such modality.
            TokenCountError: it has not that many tokens.
        """
        if modality not in self.stage1.modalities:
            raise UsageError(
                f"The run {self.root} has the modalities {', '.join(self.stage1.modalities)}; got {modality!r}."
            )
        encoder = self.stage1.modalities[modality].build()
        head = self.head.build() if tokens is None else self.head.build().truncated(tokens)
        return EagerEmbedder(encoder, head, modality, self.head.reductions.get(modality))


def open_run(root: Path, stage1_checkpoint: Path | None = None) -> TrainedRun:
    """Open a run for inference.

    Args:
        root: OUTPUT_DIR/LOG_NAME.
        stage1_checkpoint: path of stage 1 now, if it was moved since.

    Raises:
        ArtifactError: the folder is not a run.
        CheckpointError: the run has no best head yet, or stage 1 is missing or another one.
    """
    description = read_description(root)
    head = load_best_head(description.folder)
    path = stage1_checkpoint or find_stage1(description)
    stage1 = load_stage1(path)
    if stage1.content_hash() != head.stage1_hash:
        raise CheckpointError(
            f"{path} is not the stage 1 checkpoint that {root} was trained on; name that one with --stage1-checkpoint."
        )
    return TrainedRun(description, head, stage1, description.folder.read_results())


def trust_code_of_run(root: Path, stage1_checkpoint: Path | None = None) -> None:
    """Allow the code that the encoders of a run import; see `trust_code`.

    Raises:
        ArtifactError: the folder is not a run.
        CheckpointError: its stage 1 is missing or cannot be used.
    """
    trust_code(stage1_checkpoint or find_stage1(read_description(root)))


def load_best_head(folder: RunFolder) -> HeadCheckpoint:
    """Read the best head of a run.

    Raises:
        CheckpointError: there is none yet, or it cannot be used.
    """
    if not folder.best.is_file():
        raise CheckpointError(
            f"The run {folder.root} has no best head yet; let fluxtalk-train reach a validation, "
            "or continue it with --resume."
        )
    return load_head(folder.best)


def find_stage1(run: RunDescription) -> Path:
    """Find a run's stage 1: where it was, else there as seen from the run, else as it was named.

    Raises:
        CheckpointError: it is at none of these places.
    """
    candidates = [
        Path(run.info.stage1_checkpoint),
        run.folder.root / run.info.stage1_relative,
        Path(run.options["stage1_checkpoint"]),
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise CheckpointError(
        f"The stage 1 checkpoint of {run.folder.root} is not at {candidates[0]} any more, nor at {candidates[1]}; "
        "say where it is with --stage1-checkpoint."
    )


def find_data(run: RunDescription) -> str | None:
    """Find a run's data set: where it was, else there as seen from the run.

    Returns:
        Its name for ``--data``, with an absolute path. None if it is at neither place and the stage 1 checkpoint named
        it, which may have moved together with it.

    Raises:
        DataError: it is at neither place, and ``--data`` named it.
    """
    names = [run.info.data_absolute or run.info.data]
    if run.info.data_relative is not None:
        names.append(with_absolute_path(run.info.data_relative, run.folder.root))
    found = first_existing(names)
    if found is None and run.options["data"] is not None:
        tried = " nor at ".join(dict.fromkeys(names))
        raise DataError(f"The data set of {run.folder.root} is not at {tried} any more; say where it is with --data.")
    return found
