"""Admission: what a request may take of the server, by the work that it brings."""

from __future__ import annotations

import itertools
import time

import pytest

from fluxtalk.preprocess import FeaturesPreprocessor, ImagePreprocessor
from fluxtalk.runtime.server.execution.admission import Admission, Caller
from fluxtalk.runtime.server.execution.work import Throughput, Work
from fluxtalk.runtime.server.http.errors import ApiError
from fluxtalk.runtime.server.metrics import Metrics

FEATURES = FeaturesPreprocessor(4)
FAR = 1e12
ITEM = Work(run=1.0, rows=1.0)


def admission(seconds_per_item: float = 1.0, queue: int = 10_000, kind: str = "sound") -> Admission:
    """Of a server that takes so long for an item of ordinary size."""
    throughput = Throughput(FEATURES)
    throughput.ran([256] * 32, seconds_per_item * 32)
    return Admission(kind, (kind, f"{kind}s"), queue, throughput, Metrics())


def fill(room: Admission, items: int, caller: Caller | None = None, seconds: float = 30.0) -> tuple[int, ApiError]:
    """Send requests of so many items until one is refused: how many were let in, and why no more."""
    for count in itertools.count():
        try:
            room.admit(caller or Caller.alone(), [ITEM] * items, soon(seconds))
        except ApiError as error:
            return count, error
    raise AssertionError


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


def test_a_full_queue_refuses_and_says_when() -> None:
    room = admission(1e-6, queue=20)
    claims = [room.admit(Caller.alone(), [ITEM] * 4, FAR) for _ in range(3)]
    with pytest.raises(ApiError, match="12 of 20 items, and room for 4") as error:
        room.admit(Caller.alone(), [ITEM] * 5, FAR)
    assert (error.value.status, error.value.code) == (429, "queue_full")
    assert int(error.value.headers["retry-after"]) >= 1
    for _ in range(8):
        claims.append(room.admit(Caller.alone(), [ITEM], FAR))
    with pytest.raises(ApiError, match="20 of 20"):
        room.admit(Caller.alone(), [ITEM], FAR)
    for claim in claims:
        room.release(claim)
    room.admit(Caller.alone(), [ITEM] * 10, FAR)


def test_one_caller_leaves_as_many_places_as_it_takes() -> None:
    room = admission(1e-6, queue=100)
    taken, _ = fill(room, 5, Caller("a", "a:1"))
    assert 40 <= 5 * taken <= 60
    for _ in range(30):
        room.admit(Caller.alone(), [ITEM], FAR)


def test_more_than_can_be_done_in_time_is_refused_with_what_would_fit() -> None:
    room = admission(0.1)
    with pytest.raises(ApiError, match=r"1,000 sounds of this length take about") as error:
        room.admit(Caller.alone(), [ITEM] * 1000, soon(30))
    assert (error.value.status, error.value.code) == (413, "too_much_work")
    fit = int(error.value.message.partition("send at most ")[2].split()[0].replace(",", ""))
    assert 60 <= fit <= 250
    room.admit(Caller.alone(), [ITEM] * fit, soon(30))


def test_a_single_item_that_takes_too_long_asks_for_more_time() -> None:
    with pytest.raises(ApiError, match="give it more time") as error:
        admission(10.0).admit(Caller.alone(), [ITEM], soon(5))
    assert error.value.status == 413
    admission(10.0).admit(Caller.alone(), [ITEM], soon(30))


def test_a_large_request_leaves_room_for_everybodys_small_ones() -> None:
    room = admission(0.01)
    large, error = fill(room, 500, Caller("hog", "hog:1"))
    assert error.status == 429
    assert large >= 2
    for number in range(50):
        room.admit(Caller(f"small {number}", "1"), [ITEM] * 8, soon(30))


def test_shares_never_exceed_what_there_is() -> None:
    count, error = fill(admission(0.01), 10)
    assert (error.status, error.code) == (429, "too_slow")
    assert "longer than this request may take" in error.message
    assert 0.01 * 10 * count <= 30


def test_a_request_with_little_time_is_refused_behind_more_than_that() -> None:
    room = admission(0.1)
    for _ in range(5):
        room.admit(Caller.alone(), [ITEM], soon(30))
    with pytest.raises(ApiError) as error:
        room.admit(Caller.alone(), [ITEM], soon(0.3))
    assert error.value.status == 429
    room.admit(Caller.alone(), [ITEM], soon(30))


def test_texts_are_charged_for_what_they_turn_out_to_be() -> None:
    room = admission(0.1, kind="text")
    claim = room.admit(Caller.alone(), [Work(run=0.1)] * 100, soon(30))
    room.settle(claim, Work(run=10))
    with pytest.raises(ApiError, match="send at most") as error:
        room.settle(claim, Work(run=1000))
    assert error.value.status == 413
    room.release(claim)
    room.admit(Caller.alone(), [ITEM] * 50, soon(30))


def test_nothing_is_refused_before_anything_was_measured() -> None:
    room = Admission("text", ("text", "texts"), 10_000, Throughput(FEATURES), Metrics())
    room.admit(Caller.alone(), [ITEM] * 2048, soon(1))


def test_a_huge_image_is_charged_for_its_pixels_and_changes_nobodys_price() -> None:
    preprocess = ImagePreprocessor(8, 8)
    throughput = Throughput(preprocess)
    small, large = (Work(prepare=units, run=0.1) for units in (100_000, 50_000_000))
    for _ in range(6):
        throughput.begin_preparing(0.0)
        throughput.end_preparing(small.prepare, 0.002)
    before = throughput.seconds(small)
    for _ in range(6):
        throughput.begin_preparing(0.0)
        throughput.end_preparing(large.prepare, 1.0)
    assert throughput.seconds(large) > 100 * throughput.seconds(small)
    assert throughput.seconds(small) < 3 * before
    assert throughput.describe()["pixels_per_second"] == pytest.approx(5e7, rel=0.1)


def test_a_large_request_is_judged_by_large_batches_after_any_number_of_small_ones() -> None:
    throughput = Throughput(FEATURES, 8)
    throughput.calibrate(([16], 0.002), ([16] * 8, 0.004))
    large = Work(run=800 * 16 / 256, rows=800)
    before = throughput.seconds(large)
    assert before == pytest.approx(100 * 0.004, rel=0.01)
    for _ in range(1000):
        throughput.ran([16], 0.002)
    assert throughput.seconds(large) == pytest.approx(before, rel=0.01)
    for _ in range(100):
        throughput.ran([16], 0.006)  # the machine got slower
    assert throughput.seconds(large) == pytest.approx(3 * before, rel=0.05)
    assert throughput.describe()["vectors_per_second"] == pytest.approx(
        256 / throughput.seconds(Work(run=1, rows=1)), rel=0.01
    )
