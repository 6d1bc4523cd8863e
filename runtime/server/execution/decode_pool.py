"""Decoding, apart from everything else: a batch never waits for a broken file, nor JSON and search for a slow one.

Texts, features and files that are surely cheap are decoded in threads, other files in processes that can be killed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from fluxtalk.arrays import Array
from fluxtalk.errors import FluxTalkError, InputError
from fluxtalk.preprocess import Preprocessor, TextPreprocessor
from fluxtalk.runtime.server.execution.decoding import FILE_KINDS, decode, decode_text
from fluxtalk.runtime.server.http.errors import ApiError, as_api_error
from fluxtalk.runtime.server.media.headers import look
from fluxtalk.runtime.server.media.thumbnail import thumbnail_of
from fluxtalk.runtime.server.media.worker_pool import WorkerPool
from fluxtalk.runtime.server.metrics import Metrics

if TYPE_CHECKING:  # its library takes a tenth of a start, and few servers fetch anything
    from fluxtalk.runtime.server.http.fetch import Fetcher

T = TypeVar("T")

_TEXTS_PER_CHUNK = 64
_SHORT_CHARACTERS = 2048
"""Characters, all texts together, that are tokenized in less time than another thread takes to wake up."""
_MOST_WORKERS = 8
"""Processes for decoding, of some 60 MiB each."""


class DecodePool:
    """Threads and processes that decode raw items.

    Args:
        threads: how many decode at a time.
        fetcher: reads files that are named by URL; None if none are.
        metrics: counters.
        with_files: True if items are files, for which processes are kept.
    """

    def __init__(self, threads: int, fetcher: Fetcher | None, metrics: Metrics, with_files: bool = True) -> None:
        self.num_threads = threads
        self._fetcher = fetcher
        self._cheap_seconds = metrics.decode_seconds.labels("server")
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="fluxtalk-work")
        self._file_threads = ThreadPoolExecutor(threads, thread_name_prefix="fluxtalk-decode")
        self.workers = WorkerPool(min(threads, _MOST_WORKERS), metrics) if with_files else None
        """Decode files that may be expensive; None if no modality has files."""

    @property
    def why_not_ready(self) -> str | None:
        """Reason why requests should be sent elsewhere; None if there is none."""
        return None if self.workers is None else self.workers.why_not_ready

    def start(self) -> None:
        """Start the processes, and wait until they are warm.

        Raises:
            BackendError: a process does not start.
        """
        if self.workers is not None:
            self.workers.start()

    async def prepare(
        self, preprocess: Preprocessor, values: Sequence[Any], positions: Sequence[int], deadline: float
    ) -> list[Array]:
        """Decode the items of one modality. If this is canceled, so is the work.

        A request has as many items in work as there are threads, so that others take turns with it.

        Args:
            positions: positions of the items in the request, for errors.
            deadline: time on the clock of `time.monotonic` by which they are of use.

        Raises:
            ApiError: an item cannot be used, and its position is named; or too many files wait (429).
        """
        if isinstance(preprocess, TextPreprocessor) and _are_short(values):
            return _decode_texts(preprocess, values, positions)
        prepared: list[Array | None] = [None] * len(values)
        size = _TEXTS_PER_CHUNK if preprocess.kind == "text" else 1
        chunks = iter(range(0, len(values), size))

        async def work(chunks: Iterator[int]) -> None:
            for start in chunks:
                prepared[start : start + size] = await self._chunk(
                    preprocess, values[start : start + size], positions[start : start + size], deadline
                )

        workers = [asyncio.ensure_future(work(chunks)) for _ in range(min(self.num_threads, -(-len(values) // size)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        return [array for array in prepared if array is not None]

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run work that would keep the event loop, but decodes no file."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def prepare_file(self, preprocess: Preprocessor, value: Any, deadline: float) -> Array:
        """Decode one file, in a thread if that is cheap, and else in a process that ends if this is canceled.

        Args:
            value: the bytes of the file, or its base64.
            deadline: time on the clock of `time.monotonic` by which it is of use.

        Raises:
            InputError: it cannot be used.
            ApiError: 429: too many files wait.
        """
        begin = time.monotonic()
        found = await asyncio.get_running_loop().run_in_executor(self._file_threads, decode, preprocess, value)
        if not isinstance(found, bytes):
            self._cheap_seconds.observe(time.monotonic() - begin)
            return found
        assert self.workers is not None
        return await self.workers.prepare(preprocess, found, deadline)

    async def thumbnail(self, data: bytes, side: int, deadline: float) -> tuple[bytes, str]:
        """Make a small picture of an image file; see `encoded_thumbnail`.

        Raises:
            InputError: it cannot be used.
            ApiError: 429: too many files wait.
        """
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._file_threads, _thumbnail_if_cheap, data, side)
        if found is not None:
            return found
        assert self.workers is not None
        return await self.workers.thumbnail(data, side, deadline)

    def close(self) -> None:
        """Kill the processes, and end the threads after what they have begun."""
        if self.workers is not None:
            self.workers.close()
        self._threads.shutdown(cancel_futures=True)
        self._file_threads.shutdown(cancel_futures=True)

    async def _chunk(
        self, preprocess: Preprocessor, values: Sequence[Any], positions: Sequence[int], deadline: float
    ) -> list[Array]:
        try:
            fetcher = self._fetcher
            async with nullcontext(values) if fetcher is None else fetcher.fetched(preprocess.kind, values) as whole:
                if preprocess.kind in FILE_KINDS:
                    return [await self.prepare_file(preprocess, value, deadline) for value in whole]
                return await self.in_thread(_decode_chunk, preprocess, whole, positions)
        except FluxTalkError as error:  # of a URL or a file: what is decoded in chunks says its own position
            raise _at(positions[0], error) from None


def _are_short(values: Sequence[Any]) -> bool:
    lengths = [len(value) if isinstance(value, str | list) else 0 for value in values[:_TEXTS_PER_CHUNK]]
    return len(values) <= _TEXTS_PER_CHUNK and sum(lengths) <= _SHORT_CHARACTERS


def _decode_texts(preprocess: TextPreprocessor, values: Sequence[Any], positions: Sequence[int]) -> list[Array]:
    arrays = []
    for value, position in zip(values, positions, strict=True):
        try:
            arrays.append(decode_text(preprocess, value))
        except FluxTalkError as error:
            raise _at(position, error) from None
    return arrays


def _decode_chunk(preprocess: Preprocessor, values: Sequence[Any], positions: Sequence[int]) -> list[Array]:
    arrays = []
    for value, position in zip(values, positions, strict=True):
        try:
            array = decode(preprocess, value)
        except FluxTalkError as error:
            raise _at(position, error) from None
        assert not isinstance(array, bytes)
        arrays.append(array)
    return arrays


def _thumbnail_if_cheap(data: bytes, side: int) -> tuple[bytes, str] | None:
    seen = look(data)
    return thumbnail_of(data, side) if seen is not None and seen.cheap else None


def _at(position: int, error: FluxTalkError) -> ApiError:
    api_error = as_api_error(error)
    if not isinstance(error, InputError):
        return api_error
    return ApiError(api_error.status, f"input {position}: {error}", api_error.code, f"input[{position}]")
