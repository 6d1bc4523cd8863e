"""Images of an adversary over HTTP: they are ended, everything else goes on, and the server ends when it is told to."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from fluxtalk.runtime import Embedder
from tests.conftest import Made
from tests.runtime.server.conftest import PATIENCE_S, Process, running
from tests.runtime.server.media.files import ISOLATED, USUAL, many_scans

NEVER_ENDS = many_scans(1500, 40_000)


@pytest.fixture(scope="module")
def server(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(made.bundle.folder, tmp_path_factory.mktemp("server") / "log", "--timeout", 20) as up:
        yield up


def send(client: httpx.Client, image: bytes, **headers: str) -> httpx.Response:
    return client.post("/v1/embeddings", content=image, headers={"content-type": "image/jpeg", **headers})


def vector(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["data"][0]["embedding"], dtype=np.float32)


def counted(client: httpx.Client, name: str) -> float:
    found = [line.split()[-1] for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(map(float, found))


def children(pid: int) -> list[int]:
    """The processes that any thread of a process started."""
    return [
        int(child) for listed in Path(f"/proc/{pid}/task").glob("*/children") for child in listed.read_text().split()
    ]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_everybody_else_is_served_beside_images_that_never_end(server: Process, embedder: Embedder) -> None:
    statuses: list[int] = []

    def attack() -> None:
        with server.client() as client:
            statuses.append(send(client, NEVER_ENDS).status_code)

    healthy = [USUAL[name]() for name in ("JPEG", "progressive JPEG", "transparent PNG", "lossless WebP")]
    expected = [embedder.embed("image", [file])[0] for file in healthy]
    long_text = "black chess queen " * 1000
    text = embedder.embed("text", [long_text])[0]
    attackers = [threading.Thread(target=attack) for _ in range(4)]
    for thread in attackers:
        thread.start()
    with server.client() as client:
        time.sleep(0.2)
        for file, wanted in zip(healthy, expected, strict=True):
            assert np.abs(vector(send(client, file)) - wanted).max() <= 1e-6
        found = vector(client.post("/v1/embeddings", json={"input": long_text}))
        assert np.abs(found - text).max() <= 1e-6
        assert len(statuses) < len(attackers), "the images that never end must still be in work"
        for thread in attackers:
            thread.join()
        assert set(statuses) <= {422, 429, 504}
        for name in ("TIFF", "GIF"):
            file = ISOLATED[name]()
            assert np.abs(vector(send(client, file)) - embedder.embed("image", [file])[0]).max() <= 1e-6
        assert client.get("/readyz").status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_a_deadline_ends_the_work(server: Process) -> None:
    killed = 'fluxtalk_decode_workers_killed_total{cause="canceled"}'
    with server.client() as client:
        wait_until(lambda: counted(client, "fluxtalk_decode_workers ") == 2)
        before, pids = counted(client, killed), children(server.process.pid)
        answer = send(client, NEVER_ENDS, **{"X-Request-Timeout": "0.5"})
        assert answer.status_code == 504
        end = time.monotonic() + PATIENCE_S
        while counted(client, killed) != before + 1:
            assert time.monotonic() < end
            time.sleep(0.05)
    while len(set(pids) & set(children(server.process.pid))) != len(pids) - 1:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["AVIF", "CIELab TIFF", "BMP", "JPEG"])
def test_base64_may_have_line_breaks(server: Process, embedder: Embedder, name: str) -> None:
    file = (USUAL | ISOLATED)[name]()
    written = base64.encodebytes(file).decode()
    assert written.count("\n") > 1
    wanted = embedder.embed("image", [file])[0]
    with server.client() as client:
        for value in (written, written.replace("\n", "\r\n"), "data:image/png;base64,\n " + written):
            found = vector(client.post("/v1/embeddings", json={"modality": "image", "input": value}))
            assert np.abs(found - wanted).max() <= 1e-6
        answer = client.post("/v1/embeddings", json={"modality": "image", "input": written + "?"})
        assert answer.status_code == 422


def test_sigterm_ends_the_process_whatever_is_in_work(made: Made, tmp_path: Path) -> None:
    with running(made.bundle.folder, tmp_path / "log", "--timeout", 3) as up:
        workers = children(up.process.pid)
        assert len(workers) == 2
        statuses: list[int] = []

        def attack() -> None:
            with up.client() as client:
                statuses.append(send(client, NEVER_ENDS).status_code)

        attackers = [threading.Thread(target=attack) for _ in range(3)]
        for thread in attackers:
            thread.start()
        time.sleep(0.5)
        workers += children(up.process.pid)
        assert up.end() == 0
        for thread in attackers:
            thread.join()
        assert set(statuses) <= {422, 429, 503, 504}
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_thread_that_never_ends_does_not_hold_the_process(made: Made, tmp_path: Path) -> None:
    code = f"""
import time
from fluxtalk.runtime.server import service
from fluxtalk.runtime.server.cli import serve
service.drain_seconds = lambda settings: 1
service._CLOSE_S = 0.5
opened = service.Service._open
def stuck(self):
    dispatcher = opened(self)
    dispatcher.decode_pool._threads.submit(time.sleep, 600)
    return dispatcher
service.Service._open = stuck
serve([{str(made.bundle.folder)!r}, "--port", "0", "--timeout", "1"])
"""
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    with process.stdout:
        up = Process(process.stdout.readline().split()[-1], process, log)
        up.wait_until_ready()
        workers = children(process.pid)
        assert len(workers) == 2
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 1
    assert "ends with work that did not end in time" in log.read_text()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
