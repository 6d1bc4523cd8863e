"""Measurement of the backends that run one graph here, side by side, and what the result depends on."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from fluxtalk.arrays import Array, Arrays
from fluxtalk.artifacts.backend_times import BackendTimes, Conditions
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.devices.memory import available_memory
from fluxtalk.devices.processor import this_processor
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.backends.threads import available_cores

MEASURE_VARIABLE = "FLUXTALK_MEASURE"
"""Variable of the environment that is ``never`` if a start is to measure nothing."""
AT_LEISURE_S = 6.0
"""Seconds of a measurement that a user asked for: with a batch of long items, a few rounds of a real encoder."""
_AT_START_S, _LEAST_S, _MOST_S = 1.5, 0.3, 0.8
"""Seconds of a measurement at a start, in which the sessions are opened too; and the least and most that runs get."""
_SHORT, _LONG, _LONGEST, _BATCH = 16, 128, 256, 8
"""Lengths of the inputs that have one, the last at leisure only, and rows of a batch: what a server forms on a CPU."""
_ROUNDS = 12
"""Rounds after which more would tell nothing new."""
_SETTLE_S = 0.01
"""Seconds in which the threads of the other backend stop burning the cores."""
_LARGEST = 512 << 20
"""Bytes of the largest graph that is opened twice for a measurement at a start."""
_MEMORY_OF_BOTH, _MEMORY_OF_BATCHES = 6, 256 << 20
"""Memory that two backends may take for one graph, in sizes of its files, and for its batches in bytes."""
_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "openvino")
_OUTPUTS = ("embeddings",)


def conditions_of(bundle: Bundle, modality: str, precision: str, options: BackendOptions) -> Conditions:
    """Collect what the times of a modality's graph depend on, on this machine."""
    here = this_processor()
    return Conditions(
        bundle.graph_hash(modality, precision),
        here.architecture,
        here.model,
        here.instructions,
        options.threads or available_cores(),
        options.spinning,
        dict(_installed()),
    )


def why_unmeasured(graph: Path) -> str | None:
    """Reason why a start must not open a graph twice, to measure; None if it may."""
    if os.environ.get(MEASURE_VARIABLE) == "never":
        return f"{MEASURE_VARIABLE} forbids it"
    size = sum(file.stat().st_size for file in (graph, graph.with_name(f"{graph.name}.data")) if file.is_file())
    if size > _LARGEST:
        return f"its {size >> 20} MB take long to open twice"
    free = available_memory()
    if free is not None and free < _MEMORY_OF_BOTH * size + _MEMORY_OF_BATCHES:
        return f"{free >> 20} MB of memory are too few to open it twice"
    return None


def seconds_left(opening: float) -> float:
    """Seconds that runs get in a measurement at a start whose sessions took ``opening`` seconds to open."""
    return min(_MOST_S, max(_LEAST_S, _AT_START_S - opening))


def measure(bundle: Bundle, modality: str, sessions: Mapping[str, Session], seconds: float) -> BackendTimes:
    """Time the sessions of one graph on the bundle's golden items: alone, short and long, and in batches.

    With `AT_LEISURE_S` there is a batch of long items too.

    The backends take turns, so that a change of the machine's speed affects all; of each batch the least time counts.

    Args:
        sessions: backend to its open session.
        seconds: time for all of it. The first batch is timed even if it takes longer, others only if there is time.

    Raises:
        InputError, BackendError: a session does not run its graph.
    """
    k = bundle.manifest.num_register_tokens
    batches: dict[str, Arrays] = {}
    found: dict[str, dict[str, float]] = {backend: {} for backend in sessions}
    end = time.perf_counter() + seconds
    for name, inputs in _batches(bundle, modality, seconds >= AT_LEISURE_S):
        if batches and time.perf_counter() > end - seconds / 2:
            break
        batches[name] = inputs
        for backend, session in sessions.items():
            session.run(inputs, k, _OUTPUTS)  # allocates and compiles for this shape
            found[backend][name] = math.inf
    for turn in range(_ROUNDS):
        if turn and time.perf_counter() > end:
            break
        for backend, session in list(sessions.items())[:: 1 if turn % 2 else -1]:
            time.sleep(_SETTLE_S)
            session.run(next(iter(batches.values())), k, _OUTPUTS)
            for name, inputs in batches.items():
                started = time.perf_counter()
                session.run(inputs, k, _OUTPUTS)
                found[backend][name] = min(found[backend][name], 1e3 * (time.perf_counter() - started))
    return BackendTimes(
        list(batches),
        {backend: [round(ms, 4) for ms in times.values()] for backend, times in found.items()},
        datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _batches(bundle: Bundle, modality: str, at_leisure: bool) -> Iterator[tuple[str, Arrays]]:
    """Yield batches by name, the cheapest first: one short item, one long, some of a middle length, some long ones."""
    entry = bundle.manifest.modalities[modality]
    golden = bundle.golden.batch[modality].inputs
    if not entry.has_length or bundle.preprocess(modality).fixed_length:
        for rows in (1, _BATCH):
            yield f"{rows}", {name: np.resize(array, (rows, *array.shape[1:])) for name, array in golden.items()}
        return
    longest = entry.max_length or _LONG
    real = int(golden["mask"][0].sum())
    shapes = {(1, min(_SHORT, longest)): None, (1, min(_LONG, longest)): None, (_BATCH, min(4 * _SHORT, longest)): None}
    if at_leisure:
        shapes[_BATCH, min(_LONGEST, longest)] = None
    for rows, length in shapes:
        yield f"{rows} x {length}", {name: _of_shape(a, real, rows, length) for name, a in golden.items()}


def _of_shape(array: Array, real: int, rows: int, length: int) -> Array:
    """Repeat the first item of a batch, without its padding, to a number of rows and a length."""
    row = np.concatenate([array[:1, :real]] * -(-length // real), axis=1)[:, :length]
    return np.ascontiguousarray(np.repeat(row, rows, axis=0))


def _installed() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
