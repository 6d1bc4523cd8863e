"""One client's large requests beside everybody's small ones: nobody gets 429 for somebody else, and nothing is lost."""

from __future__ import annotations

import base64
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from bench.server.requests import bomb, png
from tests.conftest import Made
from tests.runtime.server.conftest import Threaded, in_thread

SLOWER = 4
"""Times that the slow server runs each batch beside the one that counts."""
LONG_TEXT = " ".join(["black chess queen"] * 12)


@pytest.fixture
def slow(made: Made) -> Iterator[Threaded]:
    """A server that is slower than it was when it started, and knows it; its requests may take four seconds."""
    with in_thread(made.bundle, timeout_s=4.0) as up:
        session = up.sessions["text"]

        def run_again(inputs: Mapping[str, NDArray[Any]]) -> None:
            for _ in range(SLOWER):
                session.session.run(inputs, 4)

        session.before = run_again
        with up.client() as client:
            for _ in range(3):
                assert up.embed(client, *[LONG_TEXT] * 16).status_code == 200
        yield up


def images(*files: bytes) -> dict[str, Any]:
    return {"modality": "image", "input": [base64.b64encode(file).decode() for file in files]}


def beside(up: Threaded, large: dict[str, Any], small: dict[str, Any]) -> tuple[httpx.Response, Counter[int]]:
    """Send small requests until the large one is answered, at least one: its answer, and their statuses."""
    answers: list[httpx.Response] = []

    def send() -> None:
        with up.client() as client:
            answers.append(client.post("/v1/embeddings", json=large))

    thread = threading.Thread(target=send)
    statuses: Counter[int] = Counter()
    with up.client() as client:
        thread.start()
        while not statuses or thread.is_alive():
            statuses[client.post("/v1/embeddings", json=small).status_code] += 1
    thread.join()
    return answers[0], statuses


@pytest.mark.alone
def test_what_cannot_be_done_in_time_is_refused_at_once_and_what_would_fit_does(slow: Threaded) -> None:
    count, statuses = 2048, Counter[int]()
    for _ in range(8):  # what fits is measured anew all the time
        answer, more = beside(slow, {"input": [LONG_TEXT] * count}, {"input": "snowman"})
        statuses += more
        if answer.status_code == 200:
            break
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (413, "too_much_work"), error
        assert f"{count:,} texts of this length take about" in error["message"]
        fit = int(error["message"].partition("send at most ")[2].split()[0].replace(",", ""))
        assert 1 <= fit < count
        count = fit
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == count < 2048
    assert set(statuses) == {200}


def test_huge_images_of_one_client_change_nobodys_price(made: Made) -> None:
    huge = bomb(4000)
    small = images(png(np.zeros((64, 64), dtype=np.uint8)))
    # Time enough on a slow machine too: what does not fit into its time is another test's.
    with in_thread(made.bundle, timeout_s=120.0) as up:
        answer, statuses = beside(up, images(*[huge] * 12), small)
        assert answer.status_code == 200, answer.text
        with up.client() as client:
            for _ in range(20):
                statuses[client.post("/v1/embeddings", json=small).status_code] += 1
            throughput = client.get("/info").json()["throughput"]
    assert set(statuses) == {200}
    assert throughput["image"]["pixels_per_second"] > 0
    assert throughput["text"]["tokens_per_second"] > 0
