"""Decoding in processes: the same pixels, limits that end a file and nothing else, and a pool that mends itself."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxtalk.errors import InputError, TooLargeError
from fluxtalk.preprocess import AudioPreprocessor, ImagePreprocessor
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.media.worker import MAX_DECODED_BYTES
from fluxtalk.runtime.server.media.worker_pool import WorkerPool
from fluxtalk.runtime.server.metrics import Metrics
from tests.runtime.server.media.files import (
    HOSTILE,
    ISOLATED,
    USUAL,
    inside,
    many_scans,
    overlapping_exif,
    picture,
    png_header,
    saved,
)

PREPROCESS = ImagePreprocessor(24, 32)
SMALL = saved(picture(), "BMP")


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """A pool that every test leaves as it found it."""
    pool = WorkerPool(2, Metrics())
    pool.start()
    yield pool
    pool.close()


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await work

    asyncio.run(bounded())


async def decode(pool: WorkerPool, data: bytes, seconds: float = 100) -> np.ndarray:
    return await pool.prepare(PREPROCESS, data, time.monotonic() + seconds)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def whole(pool: WorkerPool) -> None:
    """Wait until no worker decodes, and every one that was killed has a successor."""
    await until(lambda: len(pool.workers) == pool.count and pool.is_resting)


def killed(pool: WorkerPool, cause: str) -> float:
    value = pool.metrics.decode_workers_killed.labels(cause)._value.get()  # type: ignore[attr-defined]
    return float(value)


def test_every_file_has_the_pixels_that_it_has_in_this_process(pool: WorkerPool) -> None:
    async def work() -> None:
        for name, make in (USUAL | ISOLATED).items():
            data = make()
            assert np.array_equal(await decode(pool, data), PREPROCESS.prepare(data)), name

    run(work())


def test_a_sound_is_the_one_that_this_process_reads(pool: WorkerPool) -> None:
    preprocess = AudioPreprocessor(8000, 4000)
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes((20_000 * np.sin(np.arange(16_000) / 9)).astype("<i2").tobytes())
    data = file.getvalue()

    async def work() -> None:
        found = await pool.prepare(preprocess, data, time.monotonic() + 100)
        assert np.array_equal(found, preprocess.prepare(data))
        with pytest.raises(InputError, match="cannot be"):
            await pool.prepare(preprocess, b"no sound", time.monotonic() + 100)

    run(work())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_decoded_or_refused_in_a_sentence(pool: WorkerPool, name: str) -> None:
    async def work() -> None:
        found = (await asyncio.gather(decode(pool, HOSTILE[name]()), return_exceptions=True))[0]
        if isinstance(found, InputError):
            assert str(found).endswith(".")
        else:
            assert isinstance(found, np.ndarray)
            assert found.shape == (24, 32, 3)
        assert (await decode(pool, SMALL)).shape == (24, 32, 3)

    run(work())


def test_a_file_that_never_ends_is_ended_and_the_others_go_on(pool: WorkerPool) -> None:
    data = many_scans(1000, 40_000)  # a minute and more
    assert len(data) < 1 << 20

    async def work() -> None:
        before, pids = killed(pool, "cpu"), set(pool.workers)
        slow = asyncio.ensure_future(decode(pool, data))
        for _ in range(5):
            assert (await decode(pool, SMALL)).shape == (24, 32, 3)
        assert not slow.done()
        with pytest.raises(InputError, match=r"much longer to decode than one of its size should; save it anew\."):
            await slow
        assert killed(pool, "cpu") == before + 1
        await whole(pool)
        assert len(pids & set(pool.workers)) == 1

    run(work())


@pytest.mark.parametrize(
    ("what", "data"),
    {
        "chunks": inside(saved(picture(), "PNG"), 33, b"\0\0\0\0teXt\xcd\x9d\x8c\xa6" * 2_000_000),
        "rationals": overlapping_exif(60, 1_000_000),
    }.items(),
)
def test_work_before_the_first_pixel_is_bounded_too(pool: WorkerPool, what: str, data: bytes) -> None:
    async def work() -> None:
        with pytest.raises(InputError):
            await decode(pool, data)
        await whole(pool)

    run(work())


def test_a_picture_that_takes_too_much_memory_is_refused_before_it_is_decoded(pool: WorkerPool) -> None:
    async def work() -> None:
        pids = set(pool.workers)
        with pytest.raises(TooLargeError, match="11000 x 10000 pixels; at most 100,000,000 are taken"):
            await decode(pool, png_header(11_000, 10_000))
        with pytest.raises(TooLargeError, match="far more than the 100,000,000 pixels"):
            await decode(pool, png_header(60_000, 60_000))
        webp = saved(Image.new("L", (8000, 8000)), "WEBP", lossless=True)
        with pytest.raises(
            TooLargeError, match=rf"take \d+ MiB to decode; at most {MAX_DECODED_BYTES >> 20} are taken"
        ):
            await decode(pool, webp)
        assert set(pool.workers) == pids

    run(work())


def test_a_large_picture_leaves_a_worker_for_the_others(pool: WorkerPool) -> None:
    large = saved(Image.new("RGB", (6000, 6000)), "BMP")  # 144 MB

    async def work() -> None:
        order: list[str] = []

        async def named(name: str, data: bytes) -> None:
            await decode(pool, data)
            order.append(name)

        await asyncio.gather(*(named("large", large) for _ in range(2)), named("small", SMALL))
        assert order[0] == "small"

    run(work())


def test_canceled_work_ends_at_once(pool: WorkerPool) -> None:
    data = many_scans(1000, 40_000)

    async def work() -> None:
        before, pids = killed(pool, "canceled"), set(pool.workers)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await decode(pool, data)
        await until(lambda: killed(pool, "canceled") == before + 1)
        gone = pids - set(pool.workers)
        assert len(gone) == 1
        await whole(pool)
        with pytest.raises(ProcessLookupError):
            os.kill(gone.pop(), 0)
        assert (await decode(pool, SMALL)).shape == (24, 32, 3)

    run(work())


def test_requests_that_end_at_once_cost_no_process(pool: WorkerPool) -> None:
    async def work() -> None:
        before, pids = killed(pool, "canceled"), set(pool.workers)
        for _ in range(20):
            request = asyncio.ensure_future(decode(pool, SMALL))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            request.cancel()
        assert (await decode(pool, SMALL)).shape == (24, 32, 3)
        await whole(pool)
        assert (killed(pool, "canceled"), set(pool.workers)) == (before, pids)

    run(work())


def test_a_worker_that_dies_costs_one_file(pool: WorkerPool) -> None:
    data = many_scans(1000, 40_000)

    async def work() -> None:
        slow = asyncio.ensure_future(decode(pool, data))
        await asyncio.sleep(0.3)
        for pid in pool.workers:
            os.kill(pid, signal.SIGSEGV)
        with pytest.raises(InputError, match="breaks its decoder"):
            await slow
        # The other one is dying, too; whoever meets it before it is gone gets the same sentence.
        met = await asyncio.gather(decode(pool, SMALL), return_exceptions=True)
        assert isinstance(met[0], np.ndarray) or "breaks its decoder" in str(met[0])
        assert (await decode(pool, SMALL)).shape == (24, 32, 3)
        await whole(pool)

    run(work())


def test_a_full_queue_is_refused_and_a_canceled_place_is_free_again() -> None:
    pool = WorkerPool(2, Metrics(), waiting=2)
    pool.start()
    data = many_scans(1000, 40_000)

    async def work() -> None:
        slow = [asyncio.ensure_future(decode(pool, data)) for _ in range(4)]
        await asyncio.sleep(0.1)
        with pytest.raises(ApiError) as refused:
            await decode(pool, SMALL)
        assert (refused.value.status, refused.value.code) == (429, "decoding_full")
        slow.pop().cancel()
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(decode(pool, SMALL))
        await asyncio.sleep(0.1)
        assert pool.why_not_ready is None
        for one in slow[:2]:
            one.cancel()
        assert (await waiting).shape == (24, 32, 3)
        slow[2].cancel()
        await whole(pool)

    try:
        run(work())
    finally:
        pool.close()


def test_what_cannot_begin_in_time_is_refused_at_once(pool: WorkerPool) -> None:
    data = many_scans(1000, 40_000)

    async def work() -> None:
        slow = [asyncio.ensure_future(decode(pool, data)) for _ in range(3)]
        await asyncio.sleep(0.1)
        pool.seconds_per_file, kept = 10.0, pool.seconds_per_file
        with pytest.raises(ApiError) as refused:
            await decode(pool, SMALL, seconds=1)
        assert (refused.value.status, refused.value.code) == (429, "decoding_too_slow")
        pool.seconds_per_file = kept
        for one in slow:
            one.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert (await decode(pool, SMALL)).shape == (24, 32, 3)
        await whole(pool)

    run(work())


def test_what_libraries_write_reaches_nobody(tmp_path: Path) -> None:
    broken = bytearray(saved(picture(), "TIFF", compression="tiff_lzw"))
    broken[8:200] = bytes(192)
    (tmp_path / "broken.tif").write_bytes(broken)
    code = f"""
import asyncio, time
from pathlib import Path
from fluxtalk.preprocess import ImagePreprocessor
from fluxtalk.runtime.server.media.worker_pool import WorkerPool
from fluxtalk.runtime.server.metrics import Metrics
data = Path({str(tmp_path / "broken.tif")!r}).read_bytes()
try:
    ImagePreprocessor(8, 8).prepare(data)
except Exception as error:
    print(error)
print("now the worker", flush=True)
import sys
print("now the worker", file=sys.stderr, flush=True)
pool = WorkerPool(2, Metrics())
pool.start()
try:
    asyncio.run(pool.prepare(ImagePreprocessor(8, 8), data, time.monotonic() + 60))
except Exception as error:
    print(error)
pool.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    here, there = done.stderr.split("now the worker\n")
    assert ".tif" in here, "the file must be one of which libtiff complains"
    assert there == ""


def test_a_worker_knows_no_key_and_ends_with_its_server() -> None:
    code = """
import sys, time
from fluxtalk.runtime.server.media.worker_pool import WorkerPool
from fluxtalk.runtime.server.metrics import Metrics
pool = WorkerPool(2, Metrics())
pool.start()
print(*pool.workers, flush=True)
time.sleep(120)
"""
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "FLUXTALK_API_KEY": "unmistakable-secret"},
    )
    assert server.stdout is not None
    with server.stdout:
        pids = [int(pid) for pid in server.stdout.readline().split()]
        try:
            for pid in pids:
                assert b"unmistakable-secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        finally:
            server.kill()
            server.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.01)
