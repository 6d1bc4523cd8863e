"""A typed request's way to its vectors: admission, decoding, batches, and the answer put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.arrays import Array
from fluxtalk.errors import InputError
from fluxtalk.preprocess import Preprocessor, TextPreprocessor
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.server.execution.admission import Admission, Caller, Claim
from fluxtalk.runtime.server.execution.batcher import Batcher, Job
from fluxtalk.runtime.server.execution.decode_pool import DecodePool
from fluxtalk.runtime.server.execution.decoding import FILE_KINDS
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.execution.work import Throughput
from fluxtalk.runtime.server.http.errors import ApiError, bad_request
from fluxtalk.runtime.server.http.memory import Charge, MemoryBudget
from fluxtalk.runtime.server.media.pixels import estimate_pixels
from fluxtalk.runtime.server.metrics import Metrics
from fluxtalk.runtime.server.settings import ServerSettings
from fluxtalk.runtime.server.tracing import span

if TYPE_CHECKING:
    from fluxtalk.runtime.server.http.fetch import Fetcher

_ON_CPU, _ON_GPU = 8, 64
"""Items of a batch. On a CPU, more of them hardly make an item cheaper, and all of them wait for the last."""
_DECODED_AT_A_TIME = 2
_BYTES_PER_PIXEL = 8
"""Images of one request that are decoded at a time, and the memory of a pixel: decoded, and converted once."""
_MEMORY_POLL_S = 0.02
_STALLED_S = 60.0
"""Seconds after which a batch is taken not to end."""


class Dispatcher:
    """A loaded bundle with a thread for each modality. `embed` is called from one event loop.

    Args:
        embedder: the bundle, which `close` closes.
        settings: limits.
        metrics: counters, told of everything.
        memory: charged with decoded images.
    """

    def __init__(self, embedder: Embedder, settings: ServerSettings, metrics: Metrics, memory: MemoryBudget) -> None:
        manifest = embedder.bundle.manifest
        self._embedder = embedder
        self._metrics = metrics
        self._memory = memory
        self._patience_s = settings.timeout_s
        self._preprocess: dict[str, Preprocessor] = {m: embedder.bundle.preprocess(m) for m in embedder.modalities}
        self.model = ServedModel(
            names=settings.served_model_names or (embedder.bundle.folder.resolve().name,),
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
            _fetcher(settings.allow_urls),
            metrics,
            with_files=any(preprocess.kind in FILE_KINDS for preprocess in self._preprocess.values()),
        )
        self._throughput = {m: Throughput(p, self.max_batch_items) for m, p in self._preprocess.items()}
        self._admissions = {
            m: Admission(m, _nouns(p.kind), settings.queue, self._throughput[m], metrics)
            for m, p in self._preprocess.items()
        }
        self._batchers = {
            m: Batcher(
                m, embedder.session(m), p, self.max_batch_items, self._throughput[m], metrics, self._known_good(m)
            )
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

    @property
    def reason(self) -> str:
        """Reason for the sessions' backends, for people; strangers are not told where the bundle is."""
        folder = self._embedder.bundle.folder
        return self._embedder.reason.replace(str(folder), folder.name)

    def throughput(self) -> dict[str, dict[str, float]]:
        """Describe the throughput that admission counts on, of each modality."""
        return {modality: throughput.describe() for modality, throughput in self._throughput.items()}

    def describe(self) -> str:
        """Describe the bundle, what runs each modality, and why: a backend that was passed over is named."""
        return self._embedder.describe()

    def warm(self) -> None:
        """Run every graph at the largest batch and at one item, with one token and all, before anybody waits for it.

        Raises:
            BackendError: the processes for decoding cannot be started.
        """
        self.decode_pool.start()
        bundle = self._embedder.bundle
        for modality in self._embedder.modalities:
            inputs = bundle.golden.batch[modality].inputs
            rows = len(next(iter(inputs.values())))
            session, tokens = self._embedder.session(modality), bundle.manifest.num_register_tokens
            measured = []
            for count in (1, self.max_batch_items):
                chosen = np.resize(np.arange(rows), count)
                batch = {name: array[chosen] for name, array in inputs.items()}
                lengths = batch["mask"].sum(axis=1).tolist() if "mask" in batch else [1] * count
                seconds = []
                session.run(batch, tokens)  # allocates and compiles for this shape
                for k in (1, tokens):
                    begin = time.monotonic()
                    session.run(batch, k)
                    seconds.append(time.monotonic() - begin)
                measured.append((lengths, float(np.mean(seconds))))
            self._throughput[modality].calibrate(*measured)

    async def embed(self, request: EmbedRequest, deadline: float, caller: Caller | None = None) -> Answer:
        """Embed the items of a request. If it is canceled, items that have not begun are never run.

        Args:
            deadline: time on the clock of `time.monotonic`.
            caller: its sender, with whose other requests it shares; None is one of its own.

        Raises:
            ApiError: an item cannot be used (422), there is no room (429), it is more than can be done in its time
                (413), the engine failed (500, 503), or the deadline passed (504).
        """
        caller = Caller.alone() if caller is None else caller
        positions: dict[str, list[int]] = {}
        for position, item in enumerate(request.items):
            positions.setdefault(item.modality, []).append(position)
        with ExitStack() as reserved:
            claims: dict[str, Claim] = {}
            for modality, of_modality in positions.items():
                self._batchers[modality].require_alive()
                estimate, admission = self._throughput[modality].estimate, self._admissions[modality]
                works = [estimate(request.items[position].value) for position in of_modality]
                claims[modality] = admission.admit(caller, works, deadline)
                reserved.callback(admission.release, claims[modality])
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await self._answer(request, positions, claims)
            except TimeoutError:
                self._metrics.rejections.labels("deadline").inc()
                raise ApiError(504, "The time that this request may take is over.", "deadline_exceeded") from None

    def close(self) -> None:
        """Finish what was accepted, and release everything."""
        ended = [batcher.close(self._patience_s) for batcher in self._batchers.values()]
        self.decode_pool.close()
        if all(ended):  # a session must not be closed under a batch that hangs
            self._embedder.close()

    async def _answer(self, request: EmbedRequest, positions: dict[str, list[int]], claims: dict[str, Claim]) -> Answer:
        jobs: dict[str, Job] = {}
        units = 0
        with self._metrics.stage("prepare"):
            for modality, of_modality in positions.items():
                preprocess, claim = self._preprocess[modality], claims[modality]
                if isinstance(preprocess, TextPreprocessor):
                    preprocess = _of_request(preprocess, request)
                values = [request.items[position].value for position in of_modality]
                arrays = await self._prepared(preprocess, values, of_modality, modality, claim)
                lengths = [preprocess.length(array) for array in arrays]
                units += sum(lengths)
                if preprocess.kind == "text":
                    self._throughput[modality].learn_tokens(
                        sum(len(value) for value in values if isinstance(value, str)), sum(lengths)
                    )
                self._admissions[modality].settle(claim, self._throughput[modality].of_lengths(lengths))
                jobs[modality] = Job(arrays, of_modality, request.selection, claim.deadline, claim.caller)
        try:
            futures = [asyncio.wrap_future(self._batchers[m].submit(job)) for m, job in jobs.items()]
            with span("embed"):
                # Gathering one would cost a turn of the event loop.
                found = [await futures[0]] if len(futures) == 1 else await asyncio.gather(*futures)
        finally:
            for job in jobs.values():
                job.future.cancel()
        vectors = found[0]
        if len(jobs) > 1:
            vectors = np.empty((len(request.items), *vectors.shape[1:]), dtype=np.float32)
            for job, rows in zip(jobs.values(), found, strict=True):
                vectors[job.positions] = rows
        return Answer(request.selection, vectors, units)

    async def _prepared(
        self,
        preprocess: Preprocessor,
        values: Sequence[Any],
        positions: Sequence[int],
        modality: str,
        claim: Claim,
    ) -> list[Array]:
        """`DecodePool.prepare`, measured."""
        throughput = self._throughput[modality]
        with self._memory.charge() as charge:
            if preprocess.kind == "image":
                await self._hold_pixels(values, charge, claim.deadline)
            throughput.begin_preparing(time.monotonic())
            done = 0.0
            try:
                arrays = await self.decode_pool.prepare(preprocess, values, positions, claim.deadline)
                done = claim.prepare
            finally:
                throughput.end_preparing(done, time.monotonic())
        return arrays

    async def _hold_pixels(self, values: Sequence[Any], charge: Charge, deadline: float) -> None:
        """Charge the images of a request that are decoded at a time, and wait for memory up to half of its time.

        Raises:
            ApiError: 429: there is none in all that time.
        """
        largest = sorted(map(estimate_pixels, values))[-_DECODED_AT_A_TIME:]
        # The largest image that is taken waits for others, and not for ever.
        size = min(_BYTES_PER_PIXEL * sum(largest), self._memory.most_of_one // 2)
        latest = (time.monotonic() + deadline) / 2
        while not self._memory.has_room(size) and time.monotonic() < latest:
            await asyncio.sleep(_MEMORY_POLL_S)
        charge.hold(size)

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


def _fetcher(hosts: Sequence[str]) -> Fetcher | None:
    """Open what reads files by URL; None, and nothing of its library loaded, if no host may be asked."""
    if not hosts:
        return None
    from fluxtalk.runtime.server.http.fetch import Fetcher

    return Fetcher(hosts)


def _nouns(kind: str) -> tuple[str, str]:
    """Words for one item of a kind, and for several."""
    return {"features": ("feature array", "feature arrays"), "audio": ("sound", "sounds")}.get(kind, (kind, f"{kind}s"))


def _of_request(preprocess: TextPreprocessor, request: EmbedRequest) -> Preprocessor:
    """The preprocessing of texts with the prompt and the length that a request asks for.

    Raises:
        ApiError: 400: the length leaves no room for a text.
    """
    try:
        shorter = preprocess if request.max_tokens is None else preprocess.shortened(request.max_tokens)
    except InputError as error:
        raise bad_request(str(error), "truncate_prompt_tokens") from None
    return request.prompting.apply(shorter if request.truncate else shorter.whole())
