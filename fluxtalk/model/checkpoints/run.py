"""A finished training run, opened to embed or to export: its best head and the encoders under it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.datasets.data_paths import first_existing, with_absolute_path
from fluxtalk.errors import ArtifactError, CheckpointError, DataError, UsageError
from fluxtalk.model.checkpoints.head import HeadCheckpoint, load_head
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1
from fluxtalk.model.embedder import Embedder

FORMAT = "fluxtalk.run"


@dataclass(frozen=True)
class TrainedRun:
    """A run with a trained head."""

    root: Path
    config: dict[str, Any]
    """The content of run.json."""
    head: HeadCheckpoint
    stage1: Stage1
    results: dict[str, Any] | None
    """The content of results.json, once the run has been scored."""

    @property
    def data(self) -> str:
        """How ``--data`` names the run's data set where it lies now.

        Raises:
            DataError: it was named by ``--data`` and lies neither where it was nor there as seen from the run.
        """
        return find_data(self.root, self.config) or self.stage1.data or str(self.config["facts"]["data"])

    def embedder(self, modality: str, tokens: int | None = None) -> Embedder:
        """Encoder, feature reduction and head of a modality.

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
        return Embedder(encoder, head, modality, self.head.reductions.get(modality))


def read_run_config(root: Path) -> dict[str, Any]:
    """The content of a run's run.json.

    Raises:
        ArtifactError: the folder is no run.
    """
    path = root / "run.json"
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{root} is no training run: it has no run.json; give OUTPUT_DIR/LOG_NAME of fluxtalk-train."
        ) from None
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON ({error}); restore it or train again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtifactError(f"{path} does not describe a FluxTalk run; give OUTPUT_DIR/LOG_NAME of fluxtalk-train.")
    return content


def open_run(root: Path, stage1_checkpoint: Path | None = None) -> TrainedRun:
    """Open a run for inference.

    Args:
        root: OUTPUT_DIR/LOG_NAME.
        stage1_checkpoint: where stage 1 lies now, if it was moved since.

    Raises:
        ArtifactError: the folder is no run.
        CheckpointError: the run has no best head yet, or stage 1 is missing or another one.
    """
    config = read_run_config(root)
    best = root / "checkpoints" / "best.safetensors"
    if not best.is_file():
        raise CheckpointError(
            f"The run {root} has no best head yet; let fluxtalk-train reach a validation, or continue it with --resume."
        )
    head = load_head(best)
    path = stage1_checkpoint or find_stage1(root, config)
    stage1 = load_stage1(path)
    if stage1.content_hash() != head.stage1_hash:
        raise CheckpointError(
            f"{path} is not the stage 1 checkpoint that {root} was trained on; name that one with --stage1_checkpoint."
        )
    results = root / "results.json"
    return TrainedRun(root, config, head, stage1, json.loads(results.read_text()) if results.is_file() else None)


def find_stage1(root: Path, config: dict[str, Any]) -> Path:
    """Where a run's stage 1 lies now: where it was, or there as seen from the run, or as it was named.

    Args:
        root: OUTPUT_DIR/LOG_NAME.
        config: the content of its run.json.

    Raises:
        CheckpointError: it is at none of these places.
    """
    facts = config["facts"]
    candidates: list[Path] = [
        Path(facts["stage1_checkpoint"]),
        root / facts["stage1_relative"],
        Path(config["options"]["stage1_checkpoint"]),
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise CheckpointError(
        f"The stage 1 checkpoint of {root} is not at {candidates[0]} any more, nor at {candidates[1]}; "
        "say where it is with --stage1_checkpoint."
    )


def find_data(root: Path, config: dict[str, Any]) -> str | None:
    """How ``--data`` names a run's data set where it lies now: where it was, or there as seen from the run.

    Args:
        root: OUTPUT_DIR/LOG_NAME.
        config: the content of its run.json.

    Returns:
        The name, its path absolute. None where it lies at neither place and the stage 1 checkpoint named it, which
        may have moved together with it.

    Raises:
        DataError: it lies at neither place, and ``--data`` named it.
    """
    facts = config["facts"]
    names = [facts.get("data_absolute", facts["data"])]
    if "data_relative" in facts:
        names.append(with_absolute_path(facts["data_relative"], root))
    found = first_existing(names)
    if found is None and config["options"]["data"] is not None:
        tried = " nor at ".join(dict.fromkeys(names))
        raise DataError(f"The data set of {root} is not at {tried} any more; say where it is with --data.")
    return found
