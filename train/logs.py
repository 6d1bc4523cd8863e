"""What a run says: prefixed lines for people, JSON lines for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from fluxtalk.artifacts import Identity
from fluxtalk.train.run_folder import RunFolder


class RunLog:
    """Writes to standard output, train.log and metrics.jsonl; silent on all processes but the first.

    Args:
        folder: None writes to standard output alone.
    """

    def __init__(self, identity: Identity, folder: RunFolder | None, active: bool = True) -> None:
        self._identity = identity
        self._folder = folder
        self._active = active
        if active and folder is not None:
            folder.root.mkdir(parents=True, exist_ok=True)

    def line(self, text: str) -> None:
        """Print one line with the implementation's prefix, above any progress bar."""
        if not self._active:
            return
        line = f"{self._identity.log_prefix} {text}"
        tqdm.write(line)
        if self._folder is not None:
            with self._folder.log.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one record to metrics.jsonl, with the run's identity."""
        if not self._active or self._folder is None:
            return
        record = {"kind": kind, "time": round(time.time(), 3), **self._identity.fields(), **values}
        with self._folder.metrics.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
