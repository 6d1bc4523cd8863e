"""Milliseconds of one call, by batch and length: all contenders take turns, so that noise meets them alike.

Each contender is a process of its own, which waits while another one is timed. Ratios are formed within a round, and
their median is quoted: the spread between rounds says how far to trust it.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.compare.contenders import Contender, Models
from bench.compare.environments import python_of
from bench.compare.items import names, pictures, texts
from fluxtalk.errors import BackendError, UsageError
from fluxtalk.runtime import load
from fluxtalk.scoring.parity import top1_agreement

WORKER = Path(__file__).parent / "peers" / "worker.py"
FLOAT32_COSINE = 0.9999
"""Smallest cosine to the reference that a contender must reach if it says that it computes in float32."""
NAMES = 1000
"""Texts by which the nearest items that a reduced precision keeps are counted."""
_BATCH = 32


@dataclass(frozen=True)
class Cell:
    """One shape of call."""

    modality: str
    batch: int
    length: int
    """Tokens of a text, or pixels of a picture's side."""

    @property
    def name(self) -> str:
        """Name in the results."""
        unit = "tokens" if self.modality == "text" else "px"
        return f"{self.modality}, {self.batch} x {self.length} {unit}"


CELLS = [Cell("text", batch, length) for batch in (1, 32) for length in (16, 64, 128, 256)]
CELLS += [Cell("image", batch, 320) for batch in (1, 32)]


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender, python: Path, threads: int) -> None:
        self.contender = contender
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        described = json.dumps(contender.described(threads))
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`)
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [str(python), str(WORKER), described],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.first_s = float("nan")
        """Seconds from the process's start to the end of its first call."""
        self.resident_mib = 0.0

    def call(self, items: Sequence[str], save: Path | None = None) -> float:
        """Embed the items once; give the milliseconds.

        Raises:
            BackendError: the process ended; the sentence holds its last line.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"items": items, "save": save and str(save)}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = (self._log.read().strip().splitlines() or ["it said nothing"])[-1]
            raise BackendError(f"{self.contender.label} ended: {said}")
        answer = json.loads(line)
        if np.isnan(self.first_s):
            self.first_s = time.perf_counter() - self._started
        self.resident_mib = max(self.resident_mib, answer["resident_mib"])
        return float(answer["ms"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()


@contextlib.contextmanager
def working(
    chosen: Sequence[Contender], environments: Path, threads: int, first: Sequence[str]
) -> Iterator[tuple[list[Worker], dict[str, str]]]:
    """Start the contenders one after the other, each with a first call; those that fail are named with the reason."""
    workers: list[Worker] = []
    failed: dict[str, str] = {}
    try:
        for contender in chosen:
            try:
                worker = Worker(contender, python_of(contender.environment, environments), threads)
            except UsageError as error:
                failed[contender.name] = str(error)
                continue
            workers.append(worker)
            try:
                worker.call(first)
            except BackendError as error:
                failed[contender.name] = str(error)
                workers.remove(worker)
                worker.close()
        yield workers, failed
    finally:
        for worker in workers:
            worker.close()


def measure(
    chosen: Sequence[Contender], models: Models, environments: Path, threads: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Check vectors, then time every cell.

    Args:
        seconds: about how long a contender is timed in a cell of one round, with three calls at least.

    Returns:
        Contenders that ran or failed, and ``cells``: cell to contender to the median
        milliseconds of each round's calls.
    """
    tokenizer = Path(models.text) / "tokenizer.json"
    content: dict[str, Any] = {"contenders": {}, "failed": {}, "cells": {}}
    with tempfile.TemporaryDirectory() as folder:
        for modality in ("text", "image"):
            of_modality = [one for one in chosen if one.modality == modality]
            if not of_modality:
                continue
            items = {
                cell: texts(tokenizer, cell.length, cell.batch)
                if modality == "text"
                else pictures(Path(folder), cell.batch, cell.length)
                for cell in CELLS
                if cell.modality == modality
            }
            with working(of_modality, environments, threads, next(iter(items.values()))) as (workers, failed):
                content["failed"].update(failed)
                agreement = _agreement(workers, list(items.values())[-1][:8], Path(folder))
                kept = nearest_kept(workers, names(NAMES), Path(folder)) if modality == "text" else {}
                for cell, given in items.items():
                    click.echo(cell.name)
                    content["cells"][cell.name] = _time(workers, given, seconds, rounds)
                for worker in workers:
                    content["contenders"][worker.contender.name] = {
                        "label": worker.contender.label,
                        "modality": modality,
                        "ours": worker.contender.is_ours,
                        "reduced": worker.contender.reduced,
                        "first_s": round(worker.first_s, 2),
                        "resident_mib": round(worker.resident_mib),
                        "cosine": agreement.get(worker.contender.name),
                        "kept": kept.get(worker.contender.name),
                    }
    return content


def _agreement(workers: Sequence[Worker], items: Sequence[str], folder: Path) -> dict[str, float]:
    """Smallest cosine of each peer's vectors to the first one's. Ours has a head, and replays golden vectors.

    Raises:
        BackendError: a contender that says float32 gives something else.
        ParityError: ours breaks what the bundle promises.
    """
    found: dict[str, float] = {}
    reference: np.ndarray[Any, Any] | None = None
    for worker in workers:
        if worker.contender.is_ours:
            load(worker.contender.model, verify=True, **_loaded(worker.contender)).close()
            continue
        path = folder / f"{worker.contender.name}.npy"
        worker.call(items, path)
        vectors = np.load(path)
        reference = vectors if reference is None else reference
        cosine = float((vectors * reference).sum(axis=1).min())
        if cosine < FLOAT32_COSINE and not worker.contender.reduced:
            raise BackendError(
                f"{worker.contender.label} gives other vectors: a cosine of {cosine:.4f} to the reference."
            )
        found[worker.contender.name] = round(cosine, 5)
    return found


def nearest_kept(workers: Sequence[Worker], items: Sequence[str], folder: Path) -> dict[str, float]:
    """Measure the share of items whose nearest other one is that of float32, for those of reduced precision.

    Float32 is the first contender's of the same side: peers' vectors are of the encoder, ours of encoder and head. What
    has no float32 beside it is left out.
    """
    float32: dict[bool, np.ndarray[Any, Any]] = {}
    found: dict[str, float] = {}
    for worker in workers:
        one = worker.contender
        if one.reduced == (one.is_ours in float32):
            vectors = _embedded(worker, items, folder / "kept.npy")
            if one.reduced:
                found[one.name] = round(top1_agreement(vectors, float32[one.is_ours]), 4)
            else:
                float32[one.is_ours] = vectors
    return found


def _embedded(worker: Worker, items: Sequence[str], path: Path) -> np.ndarray[Any, Any]:
    parts = []
    for start in range(0, len(items), _BATCH):
        worker.call(items[start : start + _BATCH], path)
        parts.append(np.load(path))
    return np.concatenate(parts)


def _loaded(contender: Contender) -> dict[str, Any]:
    settings = dict(contender.options)
    return {"modalities": [settings.pop("modality")], **settings}


def _time(workers: Sequence[Worker], items: Sequence[str], seconds: float, rounds: int) -> dict[str, list[float]]:
    calls = {}
    for worker in workers:
        worker.call(items)
        calls[worker] = max(3, min(200, int(1e3 * seconds / worker.call(items))))
    found: dict[str, list[float]] = {worker.contender.name: [] for worker in workers}
    for number in range(rounds):
        # Whoever is first after a pause is at a disadvantage: each is once.
        turned = [*workers[number % len(workers) :], *workers[: number % len(workers)]]
        for worker in turned:
            found[worker.contender.name].append(
                round(statistics.median(worker.call(items) for _ in range(calls[worker])), 3)
            )
    return found
