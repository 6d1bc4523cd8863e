"""A run's folder, torch-free: what is where, and run.json as a typed record.

::

    OUTPUT_DIR/LOG_NAME/
      METADATA.txt         who made this run, in plain text
      run.json             every option, the hashes of encoders and data, and what it ran on
      bad_items.jsonl      items that were left out because they cannot be used, if any
      run.lock             locked while a training writes here
      train.log            printed lines
      metrics.jsonl        one record per line: training, validation, test
      tensorboard/         the numbers again, if tensorboard is installed
      trackers.json        ids of the run in Weights & Biases and MLflow, if --track names them
      sweep.json           trials of a sweep, and what it chose, if there was one
      checkpoints/last.safetensors    with the training state, for --resume
      checkpoints/best.safetensors    the best by validation
      results.json         the scores of the best head on the test split

docs/runs.md describes the fields of its JSON files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.files import Identity, write_json
from fluxtalk.artifacts.json_files import read_object
from fluxtalk.artifacts.unfinished import is_unfinished
from fluxtalk.errors import ArtifactError, reason
from fluxtalk.field_types import field_types, fits, shown, type_words

FORMAT = "fluxtalk.run"
SCHEMA_VERSION = 1
LAST, BEST = "last.safetensors", "best.safetensors"
_BEFORE_TRAINING = {
    "METADATA.txt",
    "bad_items.jsonl",
    "checkpoints",
    "run.json",
    "run.lock",
    "sweep.json",
    "tensorboard",
    "trackers.json",
    "train.log",
}
STORED_INFO = "facts"
"""Key of `RunInfo` in run.json: runs from before the class had its name must open."""


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
    def bad_items(self) -> Path:
        return self.root / "bad_items.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "train.log"

    @property
    def lock(self) -> Path:
        return self.root / "run.lock"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def sweep(self) -> Path:
        return self.root / "sweep.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / LAST

    @property
    def best(self) -> Path:
        return self.checkpoints / BEST

    def baseline(self, projection: str) -> RunFolder:
        """Return the folder of a baseline's log and checkpoints."""
        return RunFolder(self.root / f"baseline-{projection}")

    def baseline_results(self, projection: str = "linear") -> Path:
        """Return the file of a baseline's scores on the test split."""
        return self.root / ("baseline.json" if projection == "linear" else f"baseline-{projection}.json")

    def is_free(self) -> bool:
        """Return whether a new run may begin here: only files of before a first checkpoint are there."""
        if not self.root.is_dir():
            return not self.root.exists()
        found = {path.name for path in self.root.iterdir() if not is_unfinished(path)}
        kept = self.checkpoints.is_dir() and not all(map(is_unfinished, self.checkpoints.iterdir()))
        return found <= _BEFORE_TRAINING and not kept

    def read_results(self) -> dict[str, Any] | None:
        """Read results.json; None before the run was scored.

        Raises:
            ArtifactError: it is not a JSON object.
        """
        return _read_object(self.results) if self.results.is_file() else None


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Values that a run found rather than was asked for: its data, encoders, sizes and device."""

    data: str
    """Data set, as it was named."""
    data_absolute: str | None = None
    """The data set with its path absolute; None in runs from before it was recorded."""
    data_relative: str | None = None
    """The data set with its path relative to the run's folder; None in runs from before it was recorded."""
    data_hash: str
    """`PairDataset.content_hash`."""
    stage1_hash: str
    """`Stage1.content_hash`."""
    encoder_hashes: dict[str, str]
    """Modality to `Stage1Modality.content_hash`."""
    stage1_checkpoint: str
    """Absolute path of stage 1."""
    stage1_relative: str
    """Path of stage 1 relative to the run's folder."""
    training_ids: int
    processes: int
    global_batch: int
    """Pairs of one step over all processes."""
    steps: int
    """Steps of the whole run."""
    parameters: int
    """Number of trainable parameters."""
    device: str
    left_out: dict[str, Any] | None = None
    """`LeftOut.facts` of the data, whose items are in bad_items.jsonl; None if all of it is used."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as run.json holds them."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class RunDescription:
    """The content of run.json."""

    folder: RunFolder
    identity: Identity
    options: Mapping[str, Any]
    """Every option of `fluxtalk-train` by its name, in snake_case."""
    info: RunInfo
    environment: Mapping[str, Any]
    """Versions, processor, threads and accelerator of the first start."""

    def write(self) -> None:
        """Write run.json atomically."""
        content = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            **self.identity.fields(),
            "options": dict(self.options),
            STORED_INFO: self.info.to_dict(),
            "environment": dict(self.environment),
        }
        write_json(self.folder.description, content)


def read_run_json(root: Path) -> dict[str, Any]:
    """Read run.json as it is; ``options`` and ``facts`` are objects of any content.

    Args:
        root: OUTPUT_DIR/LOG_NAME.

    Raises:
        ArtifactError: the folder is not a run, or run.json is malformed or of another schema.
    """
    path = RunFolder(root).description
    try:
        content = _read_object(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{root} is not a training run: it has no run.json; give OUTPUT_DIR/LOG_NAME of fluxtalk-train."
        ) from None
    if content.get("format") != FORMAT or not all(
        isinstance(content.get(name), dict) for name in ("options", STORED_INFO)
    ):
        raise ArtifactError(f"{path} does not describe a FluxTalk run; give OUTPUT_DIR/LOG_NAME of fluxtalk-train.")
    schema = content.get("schema_version", SCHEMA_VERSION)
    if schema != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has run schema {schema}; this FluxTalk reads {SCHEMA_VERSION}: install the version that wrote it."
        )
    return content


def read_description(root: Path) -> RunDescription:
    """Read run.json as a typed record.

    Args:
        root: OUTPUT_DIR/LOG_NAME.

    Raises:
        ArtifactError: the folder is not a run, or run.json is malformed or of another schema.
    """
    content, folder = read_run_json(root), RunFolder(root)
    found = content[STORED_INFO]
    known = field_types(RunInfo)
    required = {field.name for field in dataclasses.fields(RunInfo) if field.default is dataclasses.MISSING}
    identity = {name: content[name] for name in Identity().fields() if name in content}
    for what, values, types in (
        (f"{STORED_INFO}.", {**dict.fromkeys(required), **found}, known),
        ("", identity, field_types(Identity)),
        ("", {"environment": content.get("environment", {})}, {"environment": dict[str, Any]}),
    ):
        for name, hint in types.items():
            if name in values and not fits(values[name], hint):
                raise ArtifactError(
                    f"{folder.description} needs {what}{name}, {type_words(hint)}; got {shown(values[name])}; "
                    "restore it or train again."
                )
    return RunDescription(
        folder,
        Identity(**identity),
        content["options"],
        RunInfo(**{name: value for name, value in found.items() if name in known}),
        content.get("environment", {}),
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON ({reason(error)}); restore it or train again.") from None
