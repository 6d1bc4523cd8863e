"""The same requests without a server: the sessions alone on ready arrays, and the library on raw items."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.server.requests import Ask
from fluxtalk.runtime import Embedder


def bare_rates(embedder: Embedder, asks: Sequence[Ask], seconds: float) -> dict[str, float]:
    """Requests per second of one thread that calls nothing but the session, or nothing but `Embedder.embed`; in turn,
    so that a change of the machine's speed meets both.

    A request's items are one batch of the session.
    """
    calls = [(_session_call(embedder, ask), _library_call(embedder, ask)) for ask in asks]
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


def _session_call(embedder: Embedder, ask: Ask) -> Callable[[], Any]:
    preprocess = embedder.bundle.preprocess(ask.modality)
    batch = preprocess.collate(embedder.prepare(ask.modality, list(ask.items)))
    session = embedder.session(ask.modality)
    wanted = (embedder.bundle.manifest.layout.select(ask.k, ask.output).graph_output,)
    return lambda: session.run(batch, ask.k, wanted)


def _library_call(embedder: Embedder, ask: Ask) -> Callable[[], Any]:
    return lambda: embedder.embed(ask.modality, list(ask.items), ask.k, ask.output)
