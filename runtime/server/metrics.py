"""Counters for Prometheus."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from fluxtalk.runtime.server.tracing import span

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable under which prometheus_client finds the files that several workers share."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_WORKERS_FILE = "workers.json"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)
_RATIOS = (0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.25, 0.5)


@dataclass(frozen=True)
class WorkerState:
    """Workers of a server, as its supervisor sees them; it writes them into the folder that they share."""

    expected: int
    running: int
    """Those that serve, or start for the first time."""
    failed_starts: int
    """Replacements that could not start, so far."""

    def write(self, folder: Path) -> None:
        """Write it for the workers, whole or not at all."""
        part = folder / f".{_WORKERS_FILE}"
        part.write_bytes(orjson.dumps(asdict(self)))
        part.replace(folder / _WORKERS_FILE)

    @classmethod
    def read(cls) -> WorkerState | None:
        """Read it in a worker; None if this process is the only one."""
        folder = os.environ.get(SHARED_FOLDER)
        try:
            return cls(**orjson.loads((Path(folder) / _WORKERS_FILE).read_bytes())) if folder else None
        except (OSError, ValueError, TypeError):
            return None


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "fluxtalk_requests", "Answers, by route and status.", ["route", "status"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "fluxtalk_request_seconds",
            "From a request's headers to its answer, by route.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.stage_seconds = Histogram(
            "fluxtalk_stage_seconds",
            "Time in each stage: read (the body), prepare (decoding), run (one batch), answer (writing it).",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.decode_seconds = Histogram(
            "fluxtalk_decode_seconds",
            "Time to decode a file, by where: server (its header shows that it is cheap), or worker (another process).",
            ["where"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.decode_workers = Gauge(
            "fluxtalk_decode_workers",
            "Processes for decoding that take files.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self.decode_waiting = Gauge(
            "fluxtalk_decode_waiting_files",
            "Files that wait for such a process.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self.decode_workers_killed = Counter(
            "fluxtalk_decode_workers_killed",
            "Such processes that ended over a file: cpu (far more time than its size explains), time (no answer), "
            "crashed, or canceled (nobody waited for it any more).",
            ["cause"],
            registry=self._registry,
        )
        self.queue_seconds = Histogram(
            "fluxtalk_queue_wait_seconds",
            "How long an item waited for its batch.",
            ["modality"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batch_items = Histogram(
            "fluxtalk_batch_items", "Items of a batch.", ["modality"], buckets=_ITEMS, registry=self._registry
        )
        self.padding_ratio = Histogram(
            "fluxtalk_padding_ratio",
            "The share of a batch that is padding.",
            ["modality"],
            buckets=_RATIOS,
            registry=self._registry,
        )
        self.rejections = Counter(
            "fluxtalk_rejections",
            "Requests that were refused or given up: queue_full, too_slow (the wait would exceed the deadline), "
            "too_much_work (for its deadline), decoding_full and decoding_too_slow (the same before decoding), "
            "deadline, memory, hung_up, not_ready, overloaded, body_too_slow.",
            ["reason"],
            registry=self._registry,
        )
        self.non_finite = Counter(
            "fluxtalk_non_finite_outputs",
            "Items whose embedding was not finite, and which were refused.",
            ["modality"],
            registry=self._registry,
        )
        self.batch_retries = Counter(
            "fluxtalk_batch_retries",
            "Batches that failed and were run item by item.",
            ["modality"],
            registry=self._registry,
        )
        self.outstanding = Gauge(
            "fluxtalk_outstanding_items",
            "Items that were accepted and not answered yet.",
            ["modality"],
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self.workers_missing = Gauge(
            "fluxtalk_workers_missing",
            "Workers that ended, and whose replacement does not serve yet.",
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self.worker_failed_starts = Gauge(
            "fluxtalk_worker_failed_starts",
            "Replacements of workers that could not start, so far.",
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self.memory = Gauge(
            "fluxtalk_memory_bytes",
            "Bytes charged to requests, when each worker was last asked for metrics.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self.ready = Gauge(
            "fluxtalk_ready",
            "How many workers are ready; each knows of itself when it was last asked for metrics.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of a request, and trace it; one that fails is not timed."""
        begin = time.monotonic()
        with span(name):
            yield
        self.stage_seconds.labels(name).observe(time.monotonic() - begin)

    def exposition(self) -> bytes:
        """Write everything in Prometheus's text format, over all workers."""
        workers = WorkerState.read()
        if workers is not None:
            self.workers_missing.set(workers.expected - workers.running)
            self.worker_failed_starts.set(workers.failed_starts)
        folder = os.environ.get(SHARED_FOLDER)
        if not folder:
            return generate_latest(self._registry)
        _forget_the_dead(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_the_dead(folder: Path) -> None:
    """Remove the gauges of workers that are gone."""
    for file in folder.glob("gauge_live*.db"):
        found = re.search(r"_(\d+)\.db$", file.name)
        if found and not Path(f"/proc/{found[1]}").exists() and Path("/proc/self").exists():
            mark_process_dead(int(found[1]), str(folder))  # type: ignore[no-untyped-call]
