"""Decoding in a bounded number of threads of its own: a batch never waits for a broken file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from fluxtalk.arrays import Array
from fluxtalk.errors import FluxTalkError, InputError
from fluxtalk.preprocess import Preprocessor, TextPreprocessor
from fluxtalk.runtime.server.execution.decoding import decode, decode_text
from fluxtalk.runtime.server.http.errors import ApiError, as_api_error
from fluxtalk.runtime.server.http.fetch import Fetcher

_TEXTS_PER_CHUNK = 64
_SHORT_CHARACTERS = 2048
"""Characters, all texts together, that are tokenized in less time than another thread takes to wake up."""


class DecodePool:
    """Threads that decode raw items.

    Args:
        threads: how many decode at a time.
        fetcher: reads files that are named by URL.
    """

    def __init__(self, threads: int, fetcher: Fetcher) -> None:
        self._count = threads
        self._fetcher = fetcher
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="fluxtalk-decode")
        """Also take other work of a request that would keep the event loop."""
        # Its own thread, so that small images do not queue behind large ones.
        self._large = ThreadPoolExecutor(1, thread_name_prefix="fluxtalk-decode-large")

    async def prepare(self, preprocess: Preprocessor, values: Sequence[Any], positions: Sequence[int]) -> list[Array]:
        """Decode the items of one modality.

        A request has as many items in work as there are threads, so that others take turns with it.

        Args:
            positions: positions of the items in the request, for errors.

        Raises:
            ApiError: an item cannot be used; its position is named.
        """
        if isinstance(preprocess, TextPreprocessor) and _are_short(values):
            return _decode_texts(preprocess, values, positions)
        prepared: list[Array | None] = [None] * len(values)
        size = _TEXTS_PER_CHUNK if preprocess.kind == "text" else 1
        chunks = iter(range(0, len(values), size))

        async def work(chunks: Iterator[int]) -> None:
            for start in chunks:
                prepared[start : start + size] = await self._chunk(
                    preprocess, values[start : start + size], positions[start : start + size]
                )

        workers = [asyncio.ensure_future(work(chunks)) for _ in range(min(self._count, -(-len(values) // size)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        return [array for array in prepared if array is not None]

    def close(self) -> None:
        """End the threads after what they have begun."""
        self.threads.shutdown(cancel_futures=True)
        self._large.shutdown(cancel_futures=True)

    async def _chunk(self, preprocess: Preprocessor, values: Sequence[Any], positions: Sequence[int]) -> list[Array]:
        try:
            async with self._fetcher.fetched(preprocess.kind, values) as whole:
                return await self._decoded(preprocess, whole, positions)
        except InputError as error:  # of a URL: what is decoded says its own position
            raise _at(positions[0], error) from None

    async def _decoded(self, preprocess: Preprocessor, values: Sequence[Any], positions: Sequence[int]) -> list[Array]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self.threads, _decode_chunk, preprocess, values, positions)
        return [
            await loop.run_in_executor(self._large, _finish, preprocess, array, position)
            if isinstance(array, Image.Image)
            else array
            for array, position in zip(found, positions, strict=True)
        ]


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


def _decode_chunk(
    preprocess: Preprocessor, values: Sequence[Any], positions: Sequence[int]
) -> list[Array | Image.Image]:
    arrays = []
    for value, position in zip(values, positions, strict=True):
        try:
            arrays.append(decode(preprocess, value))
        except FluxTalkError as error:
            raise _at(position, error) from None
    return arrays


def _finish(preprocess: Preprocessor, image: Image.Image, position: int) -> Array:
    try:
        return preprocess.prepare(image)
    except FluxTalkError as error:
        raise _at(position, error) from None


def _at(position: int, error: FluxTalkError) -> ApiError:
    api_error = as_api_error(error)
    if not isinstance(error, InputError):
        return api_error
    return ApiError(api_error.status, f"input {position}: {error}", api_error.code, f"input[{position}]")
