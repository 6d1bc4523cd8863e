"""Requests per second and latency over HTTP: every contender behind its server, with 1, 8 and 32 clients.

All servers are up, and take turns; only one is asked at a time, and peers are stopped until it is their turn, because
some poll while they wait. Peers are served by the scripts of `peers/` that their contenders name, each with its
server's own batching, if it has any.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from numpy.typing import NDArray

from bench.compare.contenders import Contender, Models
from bench.compare.environments import python_of
from bench.compare.items import texts
from bench.compare.latency import FLOAT32_COSINE
from bench.server.client import Client, post_json
from bench.server.load import Load, closed_loop
from bench.server.process import serving, wait_until_verified
from fluxtalk.errors import BackendError, FluxTalkError

PEERS = Path(__file__).parent / "peers"
CONCURRENCY = (1, 8, 32)
TOKENS = 14
_CHECKED = 4
"""Texts whose vectors are compared before anything is timed."""
_PATIENCE_S = 120.0
_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
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
        vectors: dict[str, NDArray[np.float32]] = {}
        for contender in chosen:
            begin = time.perf_counter()
            try:
                url, pid = stack.enter_context(served(contender, environments, threads))
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
            if not (contender.is_ours or contender.reduced):
                vectors[contender.label] = np.stack([_vector(url, model, text) for text in written[:_CHECKED]])
            if not contender.is_ours:
                os.killpg(pid, signal.SIGSTOP)
        _require_agreement(vectors)
        for name, (url, *_) in up.items():
            if content["servers"][name]["ours"]:
                wait_until_verified(url)
        for turn in range(rounds):
            for count in CONCURRENCY:
                names = list(up)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    url, pid, requests = up[name]
                    with contextlib.nullcontext() if content["servers"][name]["ours"] else _awake(pid):
                        found = _load(url, requests, count, seconds)
                    _keep(content["load"][str(count)].setdefault(name, {}), found, name)
            click.echo(f"round {turn + 1} of {rounds}")
        for name, (_, pid, _) in up.items():
            content["servers"][name]["resident_mib"] = round(_resident_mib(pid))
    return content


@contextlib.contextmanager
def _awake(group: int) -> Iterator[None]:
    """Let the stopped processes of a peer run."""
    os.killpg(group, signal.SIGCONT)
    try:
        yield
    finally:
        os.killpg(group, signal.SIGSTOP)


def _require_agreement(vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """Compare the vectors of float32 peers with the first one's. Ours replays golden vectors by itself.

    Raises:
        BackendError: a peer gives something else.
    """
    for label, found in vectors.items():
        cosine = float((found * next(iter(vectors.values()))).sum(axis=1).min())
        if cosine < FLOAT32_COSINE:
            raise BackendError(f"{label} serves other vectors: a cosine of {cosine:.4f} to the first peer's.")


def _vector(url: str, model: str, text: str) -> NDArray[np.float32]:
    body = {"model": model, "input": text}
    answer = httpx.post(f"{url}/v1/embeddings", json=body, trust_env=False, timeout=_PATIENCE_S)
    if answer.status_code != 200:
        raise BackendError(f"{url} answered {answer.status_code}: {answer.text[:200]}")
    return np.array(answer.json()["data"][0]["embedding"], dtype=np.float32)


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
def served(contender: Contender, environments: Path, threads: int) -> Iterator[tuple[str, int]]:
    """Serve a contender; give its URL and process.

    Raises:
        UsageError: its environment is not installed.
        BackendError: it does not become ready; the sentence holds its last line.
    """
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
    words = [str(python_of(contender.environment, environments)), str(PEERS / contender.server), str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **_OFFLINE}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*words, json.dumps(contender.described(threads))],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # some servers are several processes, which end together
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _is_ready(url, process):
                log.seek(0)
                said = (log.read().strip().splitlines() or ["it said nothing"])[-1]
                raise BackendError(f"{contender.label} did not become ready: {said}")
            yield url, process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a server says that it is ready; tell whether it did."""
    end = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return True
        time.sleep(0.02)
    return False


def _resident_mib(pid: int) -> float:
    """Resident memory of a process and its children, in MiB."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB + sum(_resident_mib(int(child)) for child in children)
