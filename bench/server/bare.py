"""The same requests without a server: the sessions alone on ready arrays, and the library on raw items."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.server.requests import LoadRequest
from fluxtalk.runtime import Embedder


def bare_rates(embedder: Embedder, workload: Sequence[LoadRequest], seconds: float) -> dict[str, float]:
    """Requests per second of one thread that calls nothing but the session, or nothing but `Embedder.embed`; in turn,
    so that a change of the machine's speed meets both.

    A request's items are one batch of the session.
    """
    calls = [(_session_call(embedder, request), _library_call(embedder, request)) for request in workload]
    spent, done = [0.0, 0.0], 0
    end = time.perf_counter() + seconds
    for session, library in itertools.cycle(calls):
        for place, call in enumerate((session, library)):
            begin = time.perf_counter()
            call()
            spent[place] += time.perf_counter() - begin
        done += 1
        if time.perf_counter() > end:
            break
    return {"session_per_s": round(done / spent[0], 1), "library_per_s": round(done / spent[1], 1)}


def _session_call(embedder: Embedder, request: LoadRequest) -> Callable[[], Any]:
    preprocess = embedder.bundle.preprocess(request.modality)
    batch = preprocess.collate(embedder.prepare(request.modality, list(request.items)))
    session = embedder.session(request.modality)
    wanted = (embedder.bundle.manifest.layout.select(request.k, request.output).graph_output,)
    return lambda: session.run(batch, request.k, wanted)


def _library_call(embedder: Embedder, request: LoadRequest) -> Callable[[], Any]:
    return lambda: embedder.embed(request.modality, list(request.items), request.k, request.output)
