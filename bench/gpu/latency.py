"""Latency and throughput of every way to run a subject, numpy in and numpy out, copies included."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from bench.gpu.compiler import missing_compiler
from bench.gpu.engines import backends
from bench.gpu.models import Subject
from bench.gpu.report import Report
from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.errors import BackendError
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import to_tensors
from fluxtalk.runtime.backends.choose import choose
from fluxtalk.runtime.backends.open_sessions import open_session
from fluxtalk.runtime.backends.options import NATIVE, BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.backends.tensorrt_session import TensorRTSession

Call = Callable[[], Any]
_MOST_CALLS = 500
_WARM_UP = 5


@dataclass(frozen=True)
class Candidate:
    """One way to run a modality."""

    name: str
    precision: str
    prepare: Callable[[Arrays, int], Call]
    """Makes the call that is timed, of a batch and k."""
    close: Call = lambda: None
    every_k: bool = True
    needs: float = 5.0
    """Seconds that one shape takes at least."""


def latency(report: Report, subject: Subject, device: str, quick: bool) -> list[dict[str, Any]]:
    """Rows of candidate, modality, batch and k: milliseconds (median, p95, p99) and items per second."""
    rows: list[dict[str, Any]] = []
    tokens = subject.bundle.manifest.num_register_tokens
    shapes = list(product((1, 8) if quick else (1, 8, 64), (tokens,) if quick else (1, tokens)))
    for modality in subject.bundle.manifest.modalities:
        length = min(subject.length, subject.longest(modality))
        for candidate in _candidates(report, subject, modality, device, quick):
            for batch, k in shapes:
                if k != tokens and not candidate.every_k:
                    continue
                arrays = subject.batch(modality, batch, length)
                name = f"{candidate.name} in {candidate.precision}"
                what = f"{name} on {subject.name} {modality}, batch {batch}, k {k}"
                timed = report.attempt(
                    what, partial(_timed, candidate, arrays, k, 0.2 if quick else 0.7), candidate.needs
                )
                if timed is None:
                    break  # the other shapes would fail alike
                row: dict[str, Any] = {"subject": subject.name, "modality": modality, "candidate": candidate.name}
                row |= {"precision": candidate.precision, "batch": batch, "k": k, **timed}
                rows.append({**row, "items_per_s": round(batch * 1e3 / timed["mean_ms"], 1)})
                report.say(f"   {what}: {timed['median_ms']:.3f} ms, p99 {timed['p99_ms']:.3f} ms")
            candidate.close()
    return rows


def _candidates(report: Report, subject: Subject, modality: str, device: str, quick: bool) -> Iterator[Candidate]:
    """Backends first, then PyTorch; one at a time."""
    cpu = device == "cpu"
    for backend, precision in product(backends(cpu), subject.bundle.manifest.precisions):
        if (cpu and precision != "fp32") or (backend == "ort-tensorrt" and precision != "fp16"):
            continue
        for graphs in (True, False) if backend in NATIVE and precision == "fp16" else (True,):
            name = backend + ("" if graphs else " without CUDA graphs")
            session = report.attempt(
                f"{name} on {subject.name} {modality} in {precision}",
                partial(_opened, subject.bundle, modality, backend, precision, graphs),
                needs=20,
            )
            if session is not None:
                yield Candidate(name, precision, partial(_run_session, session), session.close)
    if modality not in subject.eager:
        report.could_not(f"eager {subject.name} {modality}", "only its bundle was given")
        return
    module = copy.deepcopy(subject.eager[modality]).to(device)
    precisions = {"fp32": None} if cpu else {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
    for precision, dtype in precisions.items():
        yield Candidate("eager", precision, partial(_run_eager, module, device, dtype))
        if not cpu and dtype != torch.bfloat16:
            yield Candidate("eager + CUDA graph", precision, partial(_run_recorded, module, dtype))
    if not cpu and not quick:
        compiled = torch.compile(module, dynamic=False)
        for precision, dtype in list(precisions.items())[:2]:
            run = partial(_run_compiled, compiled, device, dtype)
            # Half a minute for each shape.
            yield Candidate("torch.compile", precision, run, torch.compiler.reset, every_k=False, needs=60)


def _opened(bundle: Bundle, modality: str, backend: str, precision: str, graphs: bool) -> Session:
    choose(bundle, BackendOptions(backend, precision), [modality])
    if not graphs:
        return TensorRTSession(bundle, modality, precision, NATIVE[backend], cuda_graphs=False)
    return open_session(bundle, modality, BackendOptions(backend, precision))


def _run_session(session: Session, arrays: Arrays, k: int) -> Call:
    return lambda: session.run(arrays, k)


def _run_eager(module: Any, device: str, dtype: torch.dtype | None, arrays: Arrays, k: int) -> Call:
    def call() -> Any:
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=dtype is not None):
            result = module(*to_tensors(arrays, device), torch.arange(k, device=device))
        return result.tokens.cpu().numpy(), result.embeddings.cpu().numpy()

    return call


def _run_compiled(module: Any, device: str, dtype: torch.dtype | None, arrays: Arrays, k: int) -> Call:
    """Compile the module with torch.compile by a first call, and return the call to time.

    Raises:
        BackendError: what compiles it is missing.
    """
    call = _run_eager(module, device, dtype, arrays, k)
    try:
        call()
    except Exception as error:  # the compiler's own wrap each other
        missing = missing_compiler(error)
        if missing is None:
            raise
        raise BackendError(f"torch.compile has nothing to compile with: {missing}.") from error
    return call


def _run_recorded(module: EagerEmbedder, dtype: torch.dtype | None, arrays: Arrays, k: int) -> Call:
    """Record one CUDA graph for a batch's shape, and return its replay."""
    inputs = to_tensors(arrays, "cuda")
    token_index = torch.arange(k, device="cuda")

    def forward() -> Any:
        # Cached casts of the weights would belong to the recording's memory.
        with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False):
            return module(*inputs, token_index)

    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = forward()

    def call() -> Any:
        with torch.inference_mode():
            for tensor, array in zip(inputs, arrays.values(), strict=True):
                tensor.copy_(torch.from_numpy(array))
        graph.replay()
        return result.tokens.cpu().numpy(), result.embeddings.cpu().numpy()

    return call


def _timed(candidate: Candidate, arrays: Arrays, k: int, seconds: float) -> dict[str, float]:
    call = candidate.prepare(arrays, k)
    for _ in range(_WARM_UP):
        call()
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < 10 or (len(times) < _MOST_CALLS and time.perf_counter() < ends):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    median, p95, p99 = np.percentile(times, [50, 95, 99])
    found = {"median_ms": median, "p95_ms": p95, "p99_ms": p99, "mean_ms": np.mean(times)}
    return {**{name: round(float(value), 4) for name, value in found.items()}, "calls": len(times)}
