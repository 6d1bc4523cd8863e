"""The log of a run: prefixed lines for people, JSON lines for programs, scalars for TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from fluxtalk.artifacts.files import Identity, write_atomically
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.train.records.record_file import read_records
from fluxtalk.train.records.to_tensorboard import open_tensorboard
from fluxtalk.train.records.trackers import Tracker


class RunLog:
    """Writes to standard output, train.log and metrics.jsonl; silent in all processes but the first.

    If the package `tensorboard` is installed, the numbers of every record also go to ``tensorboard/``.
    docs/runs.md describes the records.

    Args:
        folder: None writes to standard output alone.
        trackers: further places of the numbers.

    Raises:
        BackendError: `tensorboard` is installed and cannot be imported.
    """

    def __init__(
        self, identity: Identity, folder: RunFolder | None, active: bool = True, trackers: Sequence[Tracker] = ()
    ) -> None:
        self._identity = identity
        self._folder = folder if active else None
        self._active = active
        self._tensorboard = None
        self._trackers = tuple(trackers) if active else ()
        if self._folder is not None:
            self._folder.root.mkdir(parents=True, exist_ok=True)
            self._tensorboard = open_tensorboard(self._folder.tensorboard)

    def line(self, text: str) -> None:
        """Print one line with the implementation's prefix, above any progress bar."""
        if not self._active:
            return
        line = f"{self._identity.log_prefix} {text}"
        tqdm.write(line)
        if self._folder is not None:
            with self._folder.log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one record to metrics.jsonl, with the run's identity.

        Raises:
            ValueError: a value is NaN or infinite, which is not JSON.
        """
        if self._folder is None:
            return
        record = {"kind": kind, "time": round(time.time(), 3), **self._identity.fields(), **values}
        with self._folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        if self._tensorboard is not None:
            self._tensorboard.record(kind, values)
        for tracker in self._trackers:
            tracker.record(kind, values)

    def cut_back(self, step: int) -> None:
        """Remove records written after the checkpoint that a run resumes from.

        Records of later steps, the test's (a resumed run is scored again) and a torn last line are removed from
        metrics.jsonl, atomically: the finished file equals an uninterrupted run's in everything but times and rates.

        Args:
            step: step of the checkpoint.

        Raises:
            ArtifactError: a line other than the last is not a record.
        """
        if self._folder is None:
            return
        if self._folder.metrics.is_file():
            records = read_records(self._folder.metrics).records
            kept = [r for r in records if r.values["kind"] != "test" and r.values.get("step", 0) <= step]
            write_atomically(self._folder.metrics, "".join(f"{record.line}\n" for record in kept))
        if self._tensorboard is not None:
            self._tensorboard.withdraw_after(step)

    def close(self) -> None:
        """Flush pending events; a later record opens the log again."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        for tracker in self._trackers:
            tracker.close()
