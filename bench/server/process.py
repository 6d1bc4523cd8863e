"""`fluxtalk serve` in a process of its own, watched from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fluxtalk.errors import BackendError

_COMMAND = (sys.executable, "-c", "from fluxtalk.runtime.server.cli import serve; serve()")
_PATIENCE_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20


@dataclass
class ServerProcess:
    """A running `fluxtalk serve`, which has been ready."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def get(self, path: str) -> httpx.Response:
        """Send GET to a path of the server."""
        return httpx.get(self.url + path, trust_env=False, timeout=_PATIENCE_S)

    @property
    def cpu_s(self) -> float:
        """Processor seconds used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def resident_mib(self) -> float:
        """Resident memory now, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / _MIB

    @property
    def is_running(self) -> bool:
        """True while the process runs."""
        return self.process.poll() is None

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()

    def wait(self) -> int:
        """Wait for the process to end, and return its exit status."""
        return self.process.wait(_PATIENCE_S)


@contextlib.contextmanager
def serving(bundle: Path, *options: object) -> Iterator[ServerProcess]:
    """A ready server on a free port of this machine; killed afterwards if it still runs.

    Raises:
        BackendError: it does not become ready; the sentence holds its own message.
    """
    if not Path("/proc/self/status").exists():
        raise BackendError("The server is watched through /proc, which is Linux's alone; measure it there.")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [*_COMMAND, str(bundle), "--port", "0", *map(str, options)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            server = ServerProcess(line.split()[-1] if line.startswith("serving ") else "", process, log)
            _wait_until_ready(server)
            yield server
        finally:
            process.kill()
            process.wait(_PATIENCE_S)
            process.stdout.close()


def _wait_until_ready(server: ServerProcess) -> None:
    end = time.monotonic() + _PATIENCE_S
    while server.url and server.is_running and time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if server.get("/readyz").status_code == 200:
                return
        time.sleep(0.05)
    raise BackendError(f"The server did not become ready: {server.log.read_text().strip() or 'it says nothing'}")


def wait_until_verified(url: str) -> None:
    """Wait for what ours still checks beside its first requests, which must not be measured with them.

    Raises:
        BackendError: it takes longer than two minutes.
    """
    end = time.monotonic() + _PATIENCE_S
    while not httpx.get(f"{url}/info", trust_env=False).json()["verified"]:
        if time.monotonic() > end:
            raise BackendError(f"{url} had not verified its bundle after {_PATIENCE_S:.0f} s; measure a smaller one.")
        time.sleep(0.2)


@dataclass
class Watch:
    """The resident set of a server, every second."""

    resident_mib: list[float] = field(default_factory=list)

    @property
    def growth_mib(self) -> float:
        """The median of the last fifth less that of the second: the first fifth is for caches to fill."""
        fifth = max(1, len(self.resident_mib) // 5)
        ordered = [sorted(part) for part in (self.resident_mib[fifth : 2 * fifth], self.resident_mib[-fifth:])]
        before, after = (part[len(part) // 2] if part else float("nan") for part in ordered)
        return after - before

    def summary(self) -> dict[str, Any]:
        """Figures for the results."""
        return {
            "seconds": len(self.resident_mib),
            "first_mib": round(self.resident_mib[0], 1),
            "largest_mib": round(max(self.resident_mib), 1),
            "last_mib": round(self.resident_mib[-1], 1),
            "growth_mib": round(self.growth_mib, 1),
            "resident_mib": [round(value, 1) for value in self.resident_mib],
        }


@contextlib.contextmanager
def watching(server: ServerProcess, every_s: float = 1.0) -> Iterator[Watch]:
    """Sample the resident set in a thread meanwhile."""
    watch, stop = Watch([server.resident_mib]), threading.Event()

    def sample() -> None:
        while not stop.wait(every_s) and server.is_running:
            watch.resident_mib.append(server.resident_mib)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()
