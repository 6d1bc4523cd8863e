"""Several workers, of which one ends."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import Made
from tests.runtime.server.conftest import PATIENCE_S, Process, running
from tests.runtime.server.test_health import values


def ask(up: Process, path: str = "/readyz") -> Any:
    return httpx.get(up.url + path, trust_env=False, timeout=PATIENCE_S).json()


def workers_until(up: Process, running_count: int) -> None:
    end = time.monotonic() + 2 * PATIENCE_S
    while ask(up).get("workers", {}).get("running") != running_count:
        assert time.monotonic() < end, up.log.read_text()
        time.sleep(0.1)


def children_of(pid: int) -> list[int]:
    """Workers of a supervisor; multiprocessing's own helper is none."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in pids if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_one_dead_worker_and_a_changed_folder_leave_the_others_serving(made: Made, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(made.bundle.folder, bundle)
    with running(bundle, tmp_path / "log", "--workers", 2) as up:
        workers_until(up, 2)
        manifest = (bundle / "manifest.json").read_bytes()
        (bundle / "manifest.json").write_bytes(b"{}")
        os.kill(children_of(up.process.pid)[0], signal.SIGKILL)
        workers_until(up, 1)
        end = time.monotonic() + 2 * PATIENCE_S
        while time.monotonic() < end:
            with up.client() as client:
                found = values(client)
                assert client.post("/v1/embeddings", json={"input": "snowman"}).status_code == 200
            if found["fluxtalk_worker_failed_starts{}"] >= 2:
                break
            time.sleep(0.2)
        assert found["fluxtalk_worker_failed_starts{}"] >= 2, up.log.read_text()
        assert found["fluxtalk_workers_missing{}"] == 1
        assert ask(up)["ready"] is True
        (bundle / "manifest.json").write_bytes(manifest)
        workers_until(up, 2)
        assert up.end() == 0
    log = up.log.read_text()
    assert "1 of 2 go on, and another is started in" in log
    assert "Traceback" not in log


def test_workers_do_not_outlive_their_supervisor(made: Made, tmp_path: Path) -> None:
    with running(made.bundle.folder, tmp_path / "log", "--workers", 2) as up:
        workers_until(up, 2)
        os.kill(up.process.pid, signal.SIGKILL)
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                ask(up, "/healthz")
            except httpx.TransportError:
                break
            assert time.monotonic() < end, up.log.read_text()
            time.sleep(0.1)
        up.process.wait()
    assert "The supervisor has died; this worker ends." in up.log.read_text()
