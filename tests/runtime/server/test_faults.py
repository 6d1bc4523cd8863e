"""Faults under a running server: whoever caused one is told, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fluxtalk.errors import BackendError
from fluxtalk.runtime import Embedder
from tests.conftest import Made
from tests.runtime.server.conftest import PATIENCE_S, Threaded, in_thread, running, wait_for
from tests.runtime.server.http.test_limits import connect, everything, head

CULPRIT = "omega omega omega"
LENGTH = 3


@pytest.fixture(scope="module")
def shared(made: Made) -> Iterator[Threaded]:
    with in_thread(made.bundle, queue=16, timeout_s=20) as up:
        yield up


@pytest.fixture
def up(shared: Threaded) -> Iterator[Threaded]:
    """The server without faults of an earlier test."""
    yield shared
    for session in shared.sessions.values():
        session.before = lambda inputs: None
        session.after = lambda outputs: None
        session.sizes.clear()


@contextlib.contextmanager
def held(up: Threaded) -> Iterator[Callable[[], None]]:
    """Have a batch of texts running that ends when the given function is called, and what queues meanwhile waits."""
    entered, let = threading.Event(), threading.Event()

    def wait(_inputs: Mapping[str, Any]) -> None:
        entered.set()
        assert let.wait(PATIENCE_S)

    session = up.sessions["text"]
    before = session.before
    session.before = wait
    with ThreadPoolExecutor(1) as pool, up.client() as client:
        first = pool.submit(up.embed, client, "first")
        assert entered.wait(PATIENCE_S)
        session.before = before
        try:
            yield let.set
        finally:
            let.set()
            assert first.result(PATIENCE_S).status_code == 200


def outstanding(up: Threaded) -> float:
    value: float = up.service.metrics.outstanding.labels("text")._value.get()
    return value


def rejections(up: Threaded, reason: str) -> float:
    value: float = up.service.metrics.rejections.labels(reason)._value.get()
    return value


def send_together(up: Threaded, texts: list[str]) -> list[httpx.Response]:
    """Each text as its own request; all of them share the batch that runs next."""
    with contextlib.ExitStack() as opened, ThreadPoolExecutor(len(texts)) as pool:
        clients = [opened.enter_context(up.client()) for _ in texts]
        with held(up) as let_go:
            answers = [pool.submit(up.embed, client, text) for client, text in zip(clients, texts, strict=True)]
            wait_for(lambda: outstanding(up) == len(texts) + 1)
            time.sleep(0.05)  # from admission to the queue
            let_go()
            return [answer.result(PATIENCE_S) for answer in answers]


def test_only_the_culprit_of_a_failed_batch_gets_an_error(up: Threaded, made: Made, embedder: Embedder) -> None:
    texts = ["black chess queen", CULPRIT, "white chess king"]
    ids = embedder.prepare("text", [CULPRIT])[0]

    def fail(inputs: Mapping[str, Any]) -> None:
        for row, mask in zip(inputs["input_ids"], inputs["mask"], strict=True):
            if np.array_equal(row[mask], ids):
                raise RuntimeError(CULPRIT)

    up.sessions["text"].before = fail
    answers = send_together(up, texts)
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert answers[1].json()["error"]["code"] == "engine_failed"
    assert CULPRIT not in answers[1].text
    # One more run: what is known to be good, which the session still answers. The culprit, if it was the last of the
    # batch, has its answer before.
    wait_for(lambda: len(up.sessions["text"].sizes) >= 6)
    assert up.sessions["text"].sizes == [1, 3, 1, 1, 1, 1]
    assert up.service.why_not_ready is None
    for answer, text in zip(answers[::2], texts[::2], strict=True):
        found = np.array([answer.json()["data"][0]["embedding"]])
        assert np.abs(found - embedder.embed("text", [text])).max() <= 1e-6


@pytest.mark.parametrize("error", [RuntimeError("no memory"), BackendError("CUDA failure 2")], ids=["plain", "ours"])
def test_an_engine_that_fails_at_everything_is_not_ready_any_more(made: Made, error: Exception) -> None:
    def fail(_inputs: Mapping[str, Any]) -> None:
        raise error

    with in_thread(made.bundle) as up, up.client() as client:
        up.sessions["text"].before = fail
        answer = up.embed(client, "black chess queen")
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_failed"
        assert str(error) not in answer.text
        wait_for(lambda: up.service.why_not_ready == "the engine of text stopped")
        assert client.get("/readyz").status_code == 503
        assert up.embed(client, "black chess queen").status_code == 503


def test_what_is_not_finite_is_an_error_and_never_an_answer(up: Threaded) -> None:
    def spoil(outputs: dict[str, np.ndarray]) -> None:
        if len(outputs["embeddings"]) == 3:
            outputs["embeddings"][1] = np.nan

    up.sessions["text"].after = spoil
    answers = send_together(up, ["black chess queen", "white chess king", "black chess king"])
    assert sorted(answer.status_code for answer in answers) == [200, 200, 422]
    refused = next(answer for answer in answers if answer.status_code == 422)
    assert refused.json()["error"]["code"] == "non_finite_embedding"
    with up.client() as client:
        assert "fluxtalk_non_finite_outputs_total" in client.get("/metrics").text


def test_a_client_that_hung_up_costs_nothing_more(up: Threaded) -> None:
    with held(up) as let_go:
        body = json.dumps({"input": ["gone"] * 5}).encode()
        with connect(up.url) as connection:
            connection.sendall(head(len(body)) + body)
            wait_for(lambda: outstanding(up) == 6)
        wait_for(lambda: outstanding(up) == 1)
        let_go()
    with up.client() as client:
        assert up.embed(client, "after").status_code == 200
    assert up.sessions["text"].sizes == [1, 1]
    assert rejections(up, "hung_up") == 1


def test_what_is_too_late_is_answered_and_never_run(up: Threaded) -> None:
    with held(up) as let_go, up.client() as client:
        late = up.embed(client, "late", **{"x-request-timeout": "0.2"})
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_exceeded"
        let_go()
    with up.client() as client:
        assert up.embed(client, "after").status_code == 200
    assert up.sessions["text"].sizes == [1, 1]


def test_a_full_queue_is_refused_at_once_and_other_modalities_are_served(up: Threaded) -> None:
    # One by one: a request gets at most as much of the queue as it leaves to others.
    with held(up) as let_go, up.client() as client, up.client() as other, ThreadPoolExecutor(15) as pool:
        waiting = [pool.submit(up.embed, other, "waits") for _ in range(15)]
        wait_for(lambda: outstanding(up) == 16)
        begin = time.monotonic()
        refused = up.embed(client, "one more")
        assert time.monotonic() - begin < 5
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        black = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
        assert client.post("/v1/embeddings", json={"modality": "image", "input": black}).status_code == 200
        let_go()
        assert {answer.result(PATIENCE_S).status_code for answer in waiting} == {200}
        assert up.embed(client, "one more").status_code == 200
    too_many = httpx.post(f"{up.url}/v1/embeddings", json={"input": ["a"] * 9}, trust_env=False)
    assert too_many.json()["error"]["code"] == "too_many_items"


def test_an_unexpected_failure_is_a_plain_error(up: Threaded, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = up.service.require_dispatcher()

    async def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("a secret of the body")

    with monkeypatch.context() as patch, up.client() as client:
        patch.setattr(dispatcher, "embed", broken)
        answer = up.embed(client, "a")
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text
    with up.client() as client:
        assert up.embed(client, "a").status_code == 200


def test_many_clients_at_once_each_get_their_own(made: Made, embedder: Embedder) -> None:
    names = [f"{color} chess {piece}" for color in ("black", "white") for piece in ("king", "queen", "rook", "pawn")]
    names += ["latin small letter a", "omega", "greek capital letter delta with tonos", "digit one"]
    expected = {(name, k): embedder.embed("text", [name], k)[0] for name in names for k in range(1, 5)}
    with in_thread(made.bundle) as up:

        def ask(seed: int) -> float:
            worst = 0.0
            random = np.random.default_rng(seed)
            with up.client() as client:
                for _ in range(15):
                    name, k = names[random.integers(len(names))], int(random.integers(1, 5))
                    answer = client.post("/v1/embeddings", json={"input": name, "tokens": k})
                    found = np.array(answer.json()["data"][0]["embedding"])
                    worst = max(worst, float(np.abs(found - expected[name, k]).max()))
            return worst

        with ThreadPoolExecutor(16) as pool:
            assert max(pool.map(ask, range(16))) <= 1e-6
        assert max(up.sessions["text"].sizes) > 1


def test_a_bundle_that_changes_on_disk_changes_nothing(made: Made, embedder: Embedder, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(made.bundle.folder, folder)
    with running(folder, tmp_path / "log") as up, up.client() as client:
        for file in folder.iterdir():
            if file.is_file():
                file.write_bytes(file.read_bytes()[::-1])
        answer = client.post("/v1/embeddings", json={"input": "black chess queen"})
        found = np.array([answer.json()["data"][0]["embedding"]])
        assert np.abs(found - embedder.embed("text", ["black chess queen"])).max() <= 1e-6
        shutil.rmtree(folder)
        assert client.post("/v1/embeddings", json={"input": "omega"}).status_code == 200
        assert client.get("/info").json()["revision"] == made.bundle.manifest.bundle_hash


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_finishes_what_was_accepted(made: Made, tmp_path: Path, workers: int) -> None:
    with running(made.bundle.folder, tmp_path / "log", "--workers", workers) as up:
        body = json.dumps({"input": "black chess queen"}).encode()
        with connect(up.url) as connection, up.client() as client:
            connection.sendall(head(len(body)) + body[:10])
            assert client.get("/readyz").status_code == 200
            time.sleep(0.2)
            up.process.terminate()
            if workers == 1:
                wait_for(lambda: client.get("/readyz").status_code == 503)
                assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
            wait_for(lambda: refuses_connections(up.url))
            connection.sendall(body[10:])
            answer = everything(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert up.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in up.log.read_text()


def refuses_connections(url: str) -> bool:
    try:
        connect(url).close()
    except ConnectionRefusedError:
        return True
    return False
