"""Shared parts of the quality benchmarks: the machine, figures over seeds, and results that survive an interruption."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import processor
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.errors import ArtifactError

_PACKAGES = ("fluxtalk", "torch", "numpy", "scikit-learn")


def machine_info() -> dict[str, Any]:
    """Description of the machine: architecture, cores, threads, date, revision, versions. No names, no paths."""
    return {
        "architecture": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, so that sums are made in one order whatever the machine; then as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    """``mean`` and ``deviation`` over seeds: the sample standard deviation, 0 for a single value."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": round(float(np.mean(values)), 5), "deviation": round(spread, 5)}


def percent(figure: Mapping[str, float]) -> str:
    """A share and its deviation over seeds in points, such as ``72.4 ± 0.6``."""
    return f"{100 * figure['mean']:.1f} ± {100 * figure['deviation']:.1f}"


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write a results file whole, or not at all."""
    write_json(path, dict(results))


class ResultStore:
    """One JSON file that keeps each finished run at once, so that an interrupted benchmark goes on where it was.

    Every run is kept beside a fingerprint of all that it depends on; a run whose fingerprint changed is done again.

    Args:
        path: of the file; it need not exist.

    Raises:
        ArtifactError: the file is not a results file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: dict[str, Any] = {"runs": {}}
        if path.is_file():
            try:
                content = json.loads(path.read_text())
                self._content = {**content, "runs": dict(content["runs"])}
            except (ValueError, TypeError, KeyError):
                raise ArtifactError(
                    f"{path} is not a results file: JSON with the runs of a benchmark was expected; "
                    "name another with -o, or remove it."
                ) from None

    def get(self, name: str, fingerprint: str) -> dict[str, Any] | None:
        """A finished run's result; None if it is missing or was made from something else."""
        run = self._content["runs"].get(name)
        return run["result"] if run is not None and run["fingerprint"] == fingerprint else None

    def put(self, name: str, fingerprint: str, result: Mapping[str, Any]) -> None:
        """Keep a run's result; it is on disk on return."""
        self._content["runs"][name] = {"fingerprint": fingerprint, "result": dict(result)}
        write_results(self._path, self._content)

    def finish(self, names: Iterable[str], summary: Mapping[str, Any]) -> None:
        """Put a summary on top of the named runs, and drop all others."""
        self._content = {**summary, "runs": {name: self._content["runs"][name] for name in names}}
        write_results(self._path, self._content)
