"""`BackendTimes` on disk: how fast the backends ran one graph on this machine, from which ``auto`` chooses.

A bundle may be read-only, or shared by machines, so the records are in the user's cache: one small file for each graph
and everything that its time depends on (`Conditions`). Under other conditions it is another file, so nothing expires:
a new version of a library, another processor or another number of threads is measured anew.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.files import hash_json, user_cache_dir, write_json
from fluxtalk.artifacts.json_files import read_object
from fluxtalk.config import StrictConfig, require
from fluxtalk.errors import UsageError, reason

FORMAT = "fluxtalk.backend_times"
SCHEMA_VERSION = 1

log = logging.getLogger("fluxtalk.backends")


@dataclass(frozen=True)
class Conditions(StrictConfig):
    """Everything that the time of a graph depends on; records of other conditions say nothing."""

    graph: str
    """SHA-256 of the graph."""
    architecture: str
    processor: str
    """Model of the processor, as its system names it."""
    instructions: str
    """Hash of the processor's instruction sets."""
    threads: int
    """Threads of one operator."""
    spinning: bool
    """True if waiting threads may burn their core."""
    libraries: dict[str, str]
    """Library that runs graphs to its version."""

    @property
    def path(self) -> Path:
        """File of the record under these conditions."""
        return user_cache_dir() / "backends" / f"{hash_json(self.to_dict())[:32]}.json"


@dataclass(frozen=True)
class BackendTimes(StrictConfig):
    """Milliseconds of each backend, for one graph under one set of conditions."""

    batches: list[str]
    """Batches that were run, by their shape, such as ``8 x 64``."""
    milliseconds: dict[str, list[float]]
    """Backend to its time for each batch."""
    measured: str
    """Day of the measurement, such as ``2026-11-30``."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Backend that must not be taken to the reason why."""

    def __post_init__(self) -> None:
        require(bool(self.milliseconds), "milliseconds has at least one backend")
        for backend, times in self.milliseconds.items():
            require(
                0 < len(times) == len(self.batches) and all(0 < ms < math.inf for ms in times),
                f"milliseconds has a positive time of {backend} for each batch; got {times!r}",
            )

    def mean(self, backend: str) -> float:
        """Geometric mean of a backend's times, in milliseconds: every batch counts the same."""
        return math.exp(math.fsum(map(math.log, self.milliseconds[backend])) / len(self.batches))


def read_times(conditions: Conditions) -> BackendTimes | None:
    """Read the record under some conditions; None if there is none, or none that can be used, which is logged."""
    path = conditions.path
    try:
        content = read_object(path)
        require(
            (content.pop("format", None), content.pop("schema_version", None)) == (FORMAT, SCHEMA_VERSION),
            f"it is not a {FORMAT} of schema {SCHEMA_VERSION}",
        )
        require(_same(content.pop("conditions", None), conditions), "it is of other conditions")
        return BackendTimes.from_dict(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, UsageError) as error:
        log.warning("The record of backends' times %s is ignored: %s.", path, reason(error))
        return None


def write_times(conditions: Conditions, times: BackendTimes) -> bool:
    """Write the record whole, in place of an older one; False, and a line in the log, if that cannot be done."""
    path = conditions.path
    content = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "conditions": conditions.to_dict()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**content, **times.to_dict()})
    except OSError as error:
        log.warning("The backends' times cannot be kept for the next start: %s.", reason(error))
        return False
    return True


def _same(found: Any, conditions: Conditions) -> bool:
    return isinstance(found, Mapping) and dict(found) == conditions.to_dict()
