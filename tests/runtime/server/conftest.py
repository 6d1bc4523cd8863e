"""Real servers on loopback: a process of its own, or a thread in this one where faults are put under it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from uvicorn import Server

from fluxtalk.artifacts.bundle import OUTPUTS, Bundle
from fluxtalk.datasets import PairDataset
from fluxtalk.runtime import Embedder, Session, load
from fluxtalk.runtime.server.app import build_app
from fluxtalk.runtime.server.run import bind, uvicorn_config
from fluxtalk.runtime.server.service import Service
from fluxtalk.runtime.server.settings import ServerSettings
from tests.conftest import Made

PATIENCE_S = 180


@dataclass
class Process:
    """`fluxtalk serve` in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, **settings)

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def wait_until_ready(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + "/readyz", trust_env=False).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())


def start(bundle: Path, log: Path, *options: object, open_files: int | None = None, **environment: str) -> Process:
    """Start a server and wait until it listens.

    Args:
        open_files: files that it may have open at a time.
    """
    limited = [] if open_files is None else ["prlimit", f"--nofile={open_files}:{open_files}"]
    command = [*limited, sys.executable, "-c", "from fluxtalk.runtime.server.cli import serve; serve()", str(bundle)]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--port", "0", "--threads", "1", *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("serving "):
        process.stdout.close()
        process.wait(PATIENCE_S)
        raise AssertionError(log.read_text())
    return Process(line.split()[-1], process, log)


@contextlib.contextmanager
def running(
    bundle: Path, log: Path, *options: object, open_files: int | None = None, **environment: str
) -> Iterator[Process]:
    """A ready server that is ended afterwards."""
    started = start(bundle, log, *options, open_files=open_files, **environment)
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.process.kill()
        started.process.wait(PATIENCE_S)
        assert started.process.stdout is not None
        started.process.stdout.close()


@pytest.fixture(scope="session")
def server(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One server for all tests that change nothing of it; bodies have a mebibyte at most."""
    with running(made.bundle.folder, tmp_path_factory.mktemp("server") / "log", "--timeout", 20, "--max_body", 1) as up:
        yield up


@pytest.fixture
def client(server: Process) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def embedder(made: Made) -> Iterator[Embedder]:
    """The same bundle through the library."""
    with load(made.bundle.folder, threads=1) as embedder:
        yield embedder


Hook = Callable[[Mapping[str, NDArray[Any]]], None]


@dataclass
class Faulty:
    """A real session with something done to it before, or to its outputs after, each run."""

    session: Session
    before: Hook = lambda inputs: None
    after: Callable[[dict[str, NDArray[np.float32]]], None] = lambda outputs: None
    sizes: list[int] = field(default_factory=list)
    """Rows of every run."""
    max_length: int | None = None
    backend: str = "faulty"

    def run(
        self, inputs: Mapping[str, NDArray[Any]], k: int, outputs: Sequence[str] = OUTPUTS
    ) -> dict[str, NDArray[np.float32]]:
        self.sizes.append(len(next(iter(inputs.values()))))
        self.before(inputs)
        found = self.session.run(inputs, k, outputs)
        self.after(found)
        return found

    def describe(self) -> str:
        return self.session.describe()

    def close(self) -> None:
        self.session.close()


@dataclass
class Threaded:
    """A server in a thread of this process."""

    url: str
    service: Service
    sessions: dict[str, Faulty]
    connections: set[Any]
    """That are open."""

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    def embed(self, client: httpx.Client, *texts: str, **headers: str) -> httpx.Response:
        return client.post("/v1/embeddings", json={"input": list(texts)}, headers=headers)


def least(measure: Callable[[], float], bound: float, tries: int = 3) -> float:
    """The least of a few measurements, up to the first below ``bound``: another program can only add to them."""
    found = measure()
    for _ in range(tries - 1):
        if found < bound:
            break
        found = min(found, measure())
    return found


def peak_mib(server: Process) -> float:
    """The most memory that the server's process ever had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextlib.contextmanager
def in_thread(bundle: Bundle, **settings: Any) -> Iterator[Threaded]:
    """A ready server whose sessions can be made to fail."""
    sessions: dict[str, Faulty] = {}

    def opened(_settings: ServerSettings) -> Embedder:
        embedder = load(bundle.folder, threads=1)
        sessions.update({m: Faulty(embedder.session(m)) for m in embedder.modalities})
        return Embedder(embedder.bundle, sessions, "under test")

    made = ServerSettings(bundle.folder, **settings)

    def failed() -> None:
        uvicorn.should_exit = True

    service = Service(made, failed, opened)
    uvicorn = Server(uvicorn_config(made, build_app(service)))
    listening = bind("127.0.0.1", 0)
    thread = threading.Thread(target=uvicorn.run, args=([listening],))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread.start()
    try:
        end = time.monotonic() + PATIENCE_S
        while service.dispatcher is None:
            assert time.monotonic() < end
            assert thread.is_alive()
            time.sleep(0.01)
        for session in sessions.values():
            session.sizes.clear()
        yield Threaded(url, service, sessions, uvicorn.server_state.connections)
    finally:
        uvicorn.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def pictures(table_path: Path) -> list[Path]:
    """Forty image files, as an index lists them."""
    return sorted(table_path.parent.glob("*.png"))[:40]


@pytest.fixture(scope="session")
def texts(table_data: PairDataset) -> list[str]:
    """Forty different texts."""
    return list(dict.fromkeys(table_data.split("train").items["text"].values))[:40]
