"""A typed request's way to its vectors: admission, decoding, batches, and the answer put together."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.preprocess import Preprocessor
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.server.execution.batcher import Batcher, Job
from fluxtalk.runtime.server.execution.decode_pool import DecodePool
from fluxtalk.runtime.server.execution.decoding import FILE_KINDS
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.http.fetch import Fetcher
from fluxtalk.runtime.server.metrics import Metrics
from fluxtalk.runtime.server.settings import ServerSettings

_ON_CPU, _ON_GPU = 8, 64
"""Items of a batch. On a CPU, more of them hardly make an item cheaper, and all of them wait for the last."""
_STALLED_S = 60.0
"""Seconds after which a batch is taken not to end."""


class Dispatcher:
    """A loaded bundle with a thread for each modality. `embed` is called from one event loop.

    Args:
        embedder: the bundle, which `close` closes.
        settings: limits.
        metrics: counters, told of everything.
    """

    def __init__(self, embedder: Embedder, settings: ServerSettings, metrics: Metrics) -> None:
        manifest = embedder.bundle.manifest
        self._embedder = embedder
        self._metrics = metrics
        self._patience_s = settings.timeout_s
        self._preprocess: dict[str, Preprocessor] = {m: embedder.bundle.preprocess(m) for m in embedder.modalities}
        self.model = ServedModel(
            name=embedder.bundle.folder.resolve().name,
            revision=manifest.bundle_hash,
            created=int(embedder.bundle.folder.stat().st_mtime),
            precision=embedder.precision,
            kinds={m: preprocess.kind for m, preprocess in self._preprocess.items()},
            manifest=manifest,
            max_items=settings.max_items,
            accept_token_ids=settings.accept_token_ids,
        )
        self.max_batch_items = self._batch_items(settings)
        self.decode_pool = DecodePool(
            max(2, available_cores() // settings.workers),
            Fetcher(settings.allow_urls),
            metrics,
            with_files=any(preprocess.kind in FILE_KINDS for preprocess in self._preprocess.values()),
        )
        self._batchers = {
            m: Batcher(m, embedder.session(m), p, self.max_batch_items, settings.queue, metrics, self._known_good(m))
            for m, p in self._preprocess.items()
        }

    @property
    def why_not_alive(self) -> str | None:
        """Reason why this server will never answer again; None while it can."""
        for modality, batcher in self._batchers.items():
            if not batcher.alive:
                return f"the engine of {modality} stopped"
            if batcher.seconds_in_batch > _STALLED_S:
                return f"a batch of {modality} has been running for {batcher.seconds_in_batch:.0f} s"
        return None

    @property
    def why_not_ready(self) -> str | None:
        """Reason why requests should be sent elsewhere for now, or for ever; None if there is none."""
        return self.why_not_alive or self.decode_pool.why_not_ready

    def preprocess(self, modality: str) -> Preprocessor:
        """Preprocessing of a modality."""
        return self._preprocess[modality]

    def sessions(self) -> dict[str, str]:
        """Describe each modality's session."""
        return {m: self._embedder.session(m).describe() for m in self._embedder.modalities}

    def describe(self) -> str:
        """Describe the bundle, what runs each modality, and why: a backend that was passed over is named."""
        return self._embedder.describe()

    def warm(self) -> None:
        """Run every graph at the largest batch and at one item, for every k, before anybody waits for it.

        Raises:
            BackendError: the processes for decoding cannot be started.
        """
        self.decode_pool.start()
        bundle = self._embedder.bundle
        for modality in self._embedder.modalities:
            inputs = bundle.golden.batch[modality].inputs
            rows = len(next(iter(inputs.values())))
            for count in (1, self.max_batch_items):
                chosen = np.resize(np.arange(rows), count)
                batch = {name: array[chosen] for name, array in inputs.items()}
                for k in range(1, bundle.manifest.num_register_tokens + 1):
                    self._embedder.session(modality).run(batch, k)
        bundle.release_golden()

    async def embed(self, request: EmbedRequest, deadline: float) -> Answer:
        """Embed the items of a request. If it is canceled, items that have not begun are never run.

        Args:
            deadline: time on the clock of `time.monotonic`.

        Raises:
            ApiError: an item cannot be used (422), there is no room (429), the engine failed (500, 503), or the
                deadline passed (504).
        """
        positions: dict[str, list[int]] = {}
        for position, item in enumerate(request.items):
            positions.setdefault(item.modality, []).append(position)
        with ExitStack() as reserved:
            for modality, of_modality in positions.items():
                self._batchers[modality].admit(len(of_modality), deadline)
                reserved.callback(self._batchers[modality].release, len(of_modality))
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await self._answer(request, positions, deadline)
            except TimeoutError:
                self._metrics.rejections.labels("deadline").inc()
                raise ApiError(504, "The time that this request may take is over.", "deadline_exceeded") from None

    def close(self) -> None:
        """Finish what was accepted, and release everything."""
        ended = [batcher.close(self._patience_s) for batcher in self._batchers.values()]
        self.decode_pool.close()
        if all(ended):  # a session must not be closed under a batch that hangs
            self._embedder.close()

    async def _answer(self, request: EmbedRequest, positions: dict[str, list[int]], deadline: float) -> Answer:
        jobs: dict[str, Job] = {}
        begin = time.monotonic()
        units = 0
        for modality, of_modality in positions.items():
            preprocess = self._preprocess[modality]
            if preprocess.kind == "text":
                preprocess = request.prompting.apply(preprocess)
            values = [request.items[position].value for position in of_modality]
            arrays = await self.decode_pool.prepare(preprocess, values, of_modality, deadline)
            units += sum(map(preprocess.length, arrays))
            jobs[modality] = Job(arrays, of_modality, request.selection, deadline)
        self._metrics.stage_seconds.labels("prepare").observe(time.monotonic() - begin)
        try:
            futures = [asyncio.wrap_future(self._batchers[m].submit(job)) for m, job in jobs.items()]
            found = await asyncio.gather(*futures)
        finally:
            for job in jobs.values():
                job.future.cancel()
        vectors = found[0]
        if len(jobs) > 1:
            vectors = np.empty((len(request.items), *vectors.shape[1:]), dtype=np.float32)
            for job, rows in zip(jobs.values(), found, strict=True):
                vectors[job.positions] = rows
        return Answer(request.selection, vectors, units)

    def _known_good(self, modality: str) -> dict[str, NDArray[Any]]:
        inputs = self._embedder.bundle.golden.batch[modality].inputs
        return {name: array[:1].copy() for name, array in inputs.items()}

    def _batch_items(self, settings: ServerSettings) -> int:
        promised = self._embedder.bundle.manifest.precisions[self._embedder.precision].tolerance
        if promised.rows is None:
            # Nothing is promised of an item beside others (dynamic int8): strangers must not change each other.
            return 1
        if settings.max_batch_items is not None:
            return settings.max_batch_items
        on_cpu = all(how.startswith(("ort-cpu", "openvino")) for how in self.sessions().values())
        return _ON_CPU if on_cpu else _ON_GPU
