"""A trial of one backend in one precision on this machine: parity, times and memory.

Every trial runs in a process of its own: the memory it takes is its own, and a library that crashes is a finding.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fluxtalk.arrays import Array, Arrays
from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.errors import BackendError, FluxTalkError
from fluxtalk.runtime.backends.choose import choose
from fluxtalk.runtime.backends.open_sessions import open_session
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.verify import verify_sessions
from fluxtalk.tokens import POOLED, TokenLayout

T = TypeVar("T")

_LONGEST = 256
"""Length of the longest input that is timed if the modality has no longest."""
_SECONDS_PER_K = 0.15
_MIN_RUNS, _MAX_RUNS = 3, 200
"""Runs of which a time is the median."""


@dataclass(frozen=True)
class Latency:
    """Time of one item, from preprocessed arrays to vectors."""

    modality: str
    length: int | None
    """Length of the input; None if the modality's inputs have one shape."""
    k: int
    ms: float
    """Median in milliseconds."""


@dataclass(frozen=True)
class Trial:
    """Measurements of a backend in one precision."""

    backend: str
    precision: str
    threads: int | None
    """Threads of one operator that were asked for; None is the available cores."""
    sessions: dict[str, str]
    """Modality to the description of its session."""
    parity: list[dict[str, Any]]
    """`ParityReport.to_dict` for every modality and k."""
    latency: list[Latency]
    open_seconds: float
    """Seconds that opening every session took."""
    resident_bytes: int | None
    """Memory of a process that serves every modality; None if the system does not report it."""

    @property
    def broken(self) -> list[str]:
        """One phrase for each tolerance that is exceeded."""
        return sorted({f"{r['modality']}: {phrase}" for r in self.parity for phrase in r["broken"]})

    def ms(self, k: int) -> float:
        """Milliseconds of the slowest modality and length with k tokens."""
        return max(cell.ms for cell in self.latency if cell.k == k)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types, for JSON."""
        return {**asdict(self), "holds": not self.broken, "broken": self.broken}


def find_refusals(folder: Path, options: BackendOptions, precisions: Sequence[str]) -> dict[str, str]:
    """Map each precision that the backend does not run to the reason."""
    bundle = read_bundle(folder, check_hashes=False)
    found = {}
    for precision in precisions:
        try:
            chosen = dataclasses.replace(options, precision=precision)
            choose(bundle, chosen)
            for modality in bundle.manifest.modalities:
                open_session(bundle, modality, chosen).close()
        except FluxTalkError as error:
            found[precision] = str(error)
    return found


def run_trial(folder: Path, options: BackendOptions) -> Trial:
    """Open every modality's session, replay the golden vectors, and time single items.

    Args:
        options: name a backend and a precision.

    Raises:
        FluxTalkError: a session does not open or run.
    """
    bundle = read_bundle(folder, check_hashes=False)
    precision = bundle.precision(options.precision)
    started = time.perf_counter()
    with ExitStack() as opened:
        sessions: dict[str, Session] = {}
        for modality in bundle.manifest.modalities:
            sessions[modality] = open_session(bundle, modality, options)
            opened.callback(sessions[modality].close)
        seconds = time.perf_counter() - started
        reports = [report.to_dict() for report in verify_sessions(bundle, sessions.__getitem__, None, precision)]
        latency = [cell for modality, session in sessions.items() for cell in _latencies(bundle, modality, session)]
        described = {modality: session.describe() for modality, session in sessions.items()}
        held = _resident_bytes()
    return Trial(options.backend, precision, options.threads, described, reports, latency, round(seconds, 3), held)


def in_subprocess(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a new process.

    Raises:
        BackendError: the process died.
        Exception: the function's own errors.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise BackendError("its libraries ended the process that tried it; install them again.") from None


def tried_ks(layout: TokenLayout) -> list[int]:
    """List the k that are timed: 1, the powers of 2, all overlapping tokens, and all tokens."""
    total, overlapping = layout.num_register_tokens, layout.num_overlapping_tokens
    return sorted({k for k in (1, 2, 4, 8, 16, 32, 64, overlapping, total) if k <= total})


def _latencies(bundle: Bundle, modality: str, session: Session) -> Iterator[Latency]:
    layout = bundle.manifest.layout
    for length, item in _items(bundle, modality):
        for k, ms in _medians(session, item, layout).items():
            yield Latency(modality, length, k, round(ms, 4))


def _items(bundle: Bundle, modality: str) -> Iterator[tuple[int | None, Arrays]]:
    """Yield the first golden item at a sixteenth, a quarter and the whole of the longest input."""
    entry = bundle.manifest.modalities[modality]
    first = {name: array[:1] for name, array in bundle.golden.batch[modality].inputs.items()}
    if not entry.has_length:
        yield None, first
        return
    longest = entry.max_length or _LONGEST
    real = int(first["mask"].sum())
    for length in sorted({max(1, longest // 16), max(1, longest // 4), longest}):
        yield length, {name: _repeated(array, real, length) for name, array in first.items()}


def _repeated(array: Array, real: int, length: int) -> Array:
    """Repeat one item (1, L, ...) without its padding up to a length."""
    return np.ascontiguousarray(np.concatenate([array[:, :real]] * -(-length // real), axis=1)[:, :length])


def _medians(session: Session, inputs: Arrays, layout: TokenLayout) -> dict[int, float]:
    """Measure milliseconds at each k. The k take turns: a change of the machine's speed affects all of them."""
    selections = [layout.select(k, POOLED) for k in tried_ks(layout)]
    times: dict[int, list[float]] = {selection.k: [] for selection in selections}
    for selection in selections:
        session.run(inputs, selection.k, (selection.graph_output,))
    ends = time.perf_counter() + _SECONDS_PER_K * len(selections)
    for turn in range(_MAX_RUNS):
        if turn >= _MIN_RUNS and time.perf_counter() > ends:
            break
        for selection in selections:
            k, outputs = selection.k, (selection.graph_output,)
            started = time.perf_counter()
            session.run(inputs, k, outputs)
            times[k].append(1e3 * (time.perf_counter() - started))
    return {k: statistics.median(found) for k, found in times.items()}


def _resident_bytes() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), None)
