"""One backend in one precision on this machine: does it open, is it right, how long does it take, what does it hold.

Every trial runs in a process of its own, so that its memory is its own, and a library that crashes is a finding.
"""

from __future__ import annotations

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
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.errors import BackendError, FluxTalkError
from fluxtalk.runtime.backends.choose import choose, open_session
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.verify import verify_sessions

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")

_LONGEST = 256
"""The longest input that is timed where a modality has no longest."""
_CELL_SECONDS = 0.15
_FEWEST, _MOST = 3, 200
"""Runs of which a time is the median."""


@dataclass(frozen=True)
class Latency:
    """How long one item takes, from preprocessed arrays to vectors."""

    modality: str
    length: int | None
    """Of the input, without padding; None where a modality has one shape."""
    k: int
    ms: float
    """The median."""


@dataclass(frozen=True)
class Trial:
    """What a backend did in one precision."""

    backend: str
    precision: str
    threads: int | None
    """As asked for; None is the available cores."""
    sessions: dict[str, str]
    """Modality to what it runs on, for people."""
    parity: list[dict[str, Any]]
    """`ParityReport.to_dict` for every modality and k."""
    latency: list[Latency]
    open_seconds: float
    resident_bytes: int | None
    """What a process that serves every modality holds; None where the system does not say."""

    @property
    def broken(self) -> list[str]:
        """One phrase for each promise that does not hold."""
        return sorted({f"{r['modality']}: {phrase}" for r in self.parity for phrase in r["broken"]})

    def ms(self, k: int) -> float:
        """The longest that an item of any modality took with k tokens."""
        return max(cell.ms for cell in self.latency if cell.k == k)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {**asdict(self), "holds": not self.broken, "broken": self.broken}


def refusals(folder: Path, backend: str, precisions: Sequence[str], threads: int | None) -> dict[str, str]:
    """Precision to why the backend does not run it; those that it does run are left out."""
    bundle = read_bundle(folder, check_hashes=False)
    found = {}
    for precision in precisions:
        try:
            options = BackendOptions(backend, precision, threads)
            choose(bundle, options)
            for modality in bundle.manifest.modalities:
                open_session(bundle, modality, options).close()
        except FluxTalkError as error:
            found[precision] = str(error)
    return found


def attempt(folder: Path, backend: str, precision: str, threads: int | None) -> Trial:
    """Open every modality's session, replay the golden vectors, and time single items.

    Raises:
        FluxTalkError: it does not open or run.
    """
    bundle = read_bundle(folder, check_hashes=False)
    options = BackendOptions(backend, precision, threads)
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
    return Trial(backend, precision, threads, described, reports, latency, round(seconds, 3), held)


def apart(what: Callable[..., T], *arguments: object) -> T:
    """Call a function in a new process.

    Raises:
        BackendError: the process died of it.
        Exception: whatever the function raises.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(what, *arguments).result()
        except BrokenProcessPool:
            raise BackendError("its libraries ended the process that tried it; install them again.") from None


def counts(bundle: Bundle) -> list[int]:
    """The k that are tried: 1, the powers of 2, all overlapping ones, and all."""
    layout = bundle.manifest.layout
    total, overlapping = layout.num_register_tokens, layout.num_overlapping_tokens
    return sorted({k for k in (1, 2, 4, 8, 16, 32, 64, overlapping, total) if k <= total})


def _latencies(bundle: Bundle, modality: str, session: Session) -> Iterator[Latency]:
    for length, item in _items(bundle, modality):
        for k, ms in _medians(session, item, counts(bundle)).items():
            yield Latency(modality, length, k, round(ms, 4))


def _items(bundle: Bundle, modality: str) -> Iterator[tuple[int | None, Arrays]]:
    """The first golden item, at a sixteenth, a quarter and the whole of the longest input."""
    first = {name: array[:1] for name, array in bundle.golden.batch[modality].inputs.items()}
    if "mask" not in first:
        yield None, first
        return
    longest = bundle.manifest.modalities[modality].max_length or _LONGEST
    real = int(first["mask"].sum())
    for length in sorted({max(1, longest // 16), max(1, longest // 4), longest}):
        yield length, {name: _repeated(array, real, length) for name, array in first.items()}


def _repeated(array: NDArray[Any], real: int, length: int) -> NDArray[Any]:
    """One item (1, L, ...) without its padding, over and over until it is as long as asked."""
    return np.ascontiguousarray(np.concatenate([array[:, :real]] * -(-length // real), axis=1)[:, :length])


def _medians(session: Session, inputs: Arrays, ks: Sequence[int]) -> dict[int, float]:
    """Milliseconds at each k; they take turns, so that a change of the machine's speed meets all."""
    times: dict[int, list[float]] = {k: [] for k in ks}
    for k in ks:
        session.run(inputs, k, ("embeddings",))
    ends = time.perf_counter() + _CELL_SECONDS * len(ks)
    for turn in range(_MOST):
        if turn >= _FEWEST and time.perf_counter() > ends:
            break
        for k in ks:
            started = time.perf_counter()
            session.run(inputs, k, ("embeddings",))
            times[k].append(1e3 * (time.perf_counter() - started))
    return {k: statistics.median(found) for k, found in times.items()}


def _resident_bytes() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), None)
