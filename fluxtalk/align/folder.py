"""The output folder of `fluxtalk align`: its paths, and `align.json`, the record of what each stage was made from.

::

    DIR/
      align.json          stage to the hash of its inputs, whether it ended, and what it left
      bad_items.jsonl     items that were left out because they cannot be used, if any
      stage1.pth          frozen encoders; absent if --stage1-checkpoint named them
      run/                the training run, its baselines in it
      evaluation.json     recall on validation and test, beside the baselines
      bundle/             what is served
      verification.json   parity of every modality, precision and k
      README.md           the model card
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fluxtalk.artifacts.files import write_json
from fluxtalk.artifacts.json_files import read_object
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.errors import ArtifactError, UsageError

FORMAT = "fluxtalk.align"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StageRecord:
    """One stage, as it was begun or ended last."""

    inputs: str
    """Hash of everything that it depends on."""
    done: bool = False
    seconds: float = 0.0
    """Duration of the process that ended it."""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """Hashes of what it left, and figures for later stages."""


@dataclass(frozen=True)
class AlignFolder:
    """The paths of one output folder."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "align.json"

    @property
    def lock(self) -> Path:
        return self.root / "align.lock"

    @property
    def stage1(self) -> Path:
        return self.root / "stage1.pth"

    @property
    def bad_items(self) -> Path:
        return self.root / "bad_items.jsonl"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.root / "run")

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def verification(self) -> Path:
        return self.root / "verification.json"

    @property
    def card(self) -> Path:
        return self.root / "README.md"

    def read_record(self) -> dict[str, StageRecord]:
        """Read the stages' records; empty before the first.

        Raises:
            UsageError: the folder holds something else.
            ArtifactError: the record is malformed or of another schema.
        """
        if not self.record.is_file():
            foreign = [path.name for path in self.root.iterdir()] if self.root.is_dir() else []
            if [name for name in foreign if name != self.lock.name]:
                raise UsageError(
                    f"{self.root} is not empty and has no {self.record.name}, so `fluxtalk align` did not make it; "
                    "choose another --output."
                )
            return {}
        try:
            content = read_object(self.record)
            if content["format"] != FORMAT or content["schema_version"] != SCHEMA_VERSION:
                raise ValueError
            return {name: StageRecord(**stage) for name, stage in content["stages"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(
                f"{self.record} is not a record that this FluxTalk wrote; restore it, or choose another --output."
            ) from None

    def write_record(self, stages: Mapping[str, StageRecord]) -> None:
        """Write the stages' records atomically."""
        content = {name: asdict(stage) for name, stage in stages.items()}
        write_json(self.record, {"format": FORMAT, "schema_version": SCHEMA_VERSION, "stages": content})

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, made if it is missing, against another `fluxtalk align`.

        Raises:
            UsageError: another one holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"Another `fluxtalk align` is writing to {self.root}; wait until it ends, or choose another --output."
            ) from None
        try:
            yield
        finally:
            lock.release()
