"""Requests per second and latency over HTTP: every contender behind its server, with 1, 8 and 32 clients.

All servers are up, and take turns; only one is asked at a time. Peers are served as `peers/app.py` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import httpx

from bench.compare.contenders import Contender, Models
from bench.compare.environments import python_of
from bench.compare.items import texts
from bench.server.client import Client, post_json
from bench.server.load import Load, closed_loop
from bench.server.process import serving, wait_until_verified
from fluxtalk.errors import BackendError, FluxTalkError

APP = Path(__file__).parent / "peers" / "app.py"
CONCURRENCY = (1, 8, 32)
TOKENS = 14
_PATIENCE_S = 120.0
_MIB = 1 << 20


def measure(
    chosen: Sequence[Contender], models: Models, environments: Path, threads: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Serve every contender, and send single texts of 14 tokens from 1, 8 and 32 clients.

    Args:
        seconds: length of one measurement.

    Returns:
        ``servers``: contender to label, seconds until it was ready, MiB; ``load``: number of clients to contender to
        ``rate``, ``p50_ms`` and ``p99_ms`` of each round; ``failed``: contender to reason.
    """
    written = texts(Path(models.text) / "tokenizer.json", TOKENS, 64)
    content: dict[str, Any] = {"servers": {}, "failed": {}, "load": {str(count): {} for count in CONCURRENCY}}
    with contextlib.ExitStack() as stack:
        up: dict[str, tuple[str, int, list[bytes]]] = {}
        for contender in chosen:
            begin = time.perf_counter()
            try:
                url, pid = stack.enter_context(_served(contender, environments, threads))
            except FluxTalkError as error:
                content["failed"][contender.name] = str(error)
                continue
            ready = time.perf_counter() - begin
            model = Path(contender.model).name
            requests = [post_json("/v1/embeddings", {"model": model, "input": text}) for text in written]
            up[contender.name] = (url, pid, requests)
            content["servers"][contender.name] = {
                "label": contender.label,
                "ours": contender.is_ours,
                "reduced": contender.reduced,
                "ready_s": round(ready, 2),
            }
            _load(url, requests, 4, min(2.0, seconds))
        for name, (url, *_) in up.items():
            if content["servers"][name]["ours"]:
                wait_until_verified(url)
        for turn in range(rounds):
            for count in CONCURRENCY:
                names = list(up)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    found = _load(up[name][0], up[name][2], count, seconds)
                    _keep(content["load"][str(count)].setdefault(name, {}), found, name)
            click.echo(f"round {turn + 1} of {rounds}")
        for name, (_, pid, _) in up.items():
            content["servers"][name]["resident_mib"] = round(_resident_mib(pid))
    return content


def _keep(record: dict[str, Any], found: Load, name: str) -> None:
    if set(found.statuses) != {200}:
        raise BackendError(f"{name} answered {dict(found.statuses)}, and not with 200 alone.")
    for key, value in (
        ("rate", found.in_time / found.sent_for_s),
        ("p50_ms", found.percentile_ms(50)),
        ("p99_ms", found.percentile_ms(99)),
    ):
        record.setdefault(key, []).append(round(value, 2))


def _load(url: str, requests: Sequence[bytes], count: int, seconds: float) -> Load:
    async def run() -> Load:
        async with Client(url) as client:
            return await closed_loop(client, requests, count, seconds)

    return asyncio.run(run())


@contextlib.contextmanager
def _served(contender: Contender, environments: Path, threads: int) -> Iterator[tuple[str, int]]:
    if contender.is_ours:
        # Threads of the peers' sessions spin while they wait, too.
        options = ["--modality", contender.modality, "--threads", threads, "--dedicated"]
        options += ["--backend", contender.options["backend"]]
        options += ["--precision", contender.options["precision"]]
        with serving(Path(contender.model), *options) as server:
            yield server.url, server.process.pid
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(python_of(contender.environment, environments)), str(APP), str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*words, json.dumps(contender.described(threads))], stdout=log, stderr=log, env=environment
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, contender)
            yield url, process.pid
        finally:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], contender: Contender) -> None:
    end = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        time.sleep(0.02)
    raise BackendError(f"{contender.label} behind FastAPI did not become ready.")


def _resident_mib(pid: int) -> float:
    """Resident memory of a process and its children, in MiB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB + sum(_resident_mib(int(child)) for child in children)
