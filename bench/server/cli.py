"""Load, overload and faults of a running server, on loopback.

``python -m bench.server --bundle BUNDLE``: starts `fluxtalk serve` as a user would, and measures throughput and latency
in closed loops, twice the capacity in an open loop, memory, what harmful requests and crowds do to others, and what
SIGTERM does under load. The load generator shares the machine's cores, and says how many it took.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from bench.machine import processor
from bench.server.bare import bare_rates
from bench.server.client import Client, post
from bench.server.crowds import crowds, crowds_phase
from bench.server.load import closed_loop
from bench.server.phases import closed_phase, drain_phase, memory_phase, neighbors_phase, overload_phase
from bench.server.process import serving, wait_until_verified
from bench.server.report import promises, tables, write_tables
from bench.server.requests import LoadRequest, harmful, mixed, one_text
from fluxtalk.artifacts.files import git_revision, write_json
from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.runtime import load

_PACKAGES = ("fluxtalk", "onnxruntime", "starlette", "uvicorn", "httptools", "uvloop", "orjson", "numpy")
_CLOSED_S, _OVERLOAD_S, _NEIGHBORS_S, _DRAIN_S, _MEMORY_S, _CROWDS_S = 8.0, 60.0, 10.0, 3.0, 600.0, 15.0
_QUICK = (2.5, 10.0, 4.0, 2.0, 20.0, 3.0)
_IDLE_SERVER = """
import asyncio
class Idle(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data): self.transport.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\n{}")
async def main():
    server = await asyncio.get_running_loop().create_server(Idle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@click.command()
@option("--bundle", required=True, type=click.Path(path_type=Path), help="A bundle with texts, such as the demo's.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The .json to write.")
@click.option("--docs", type=click.Path(path_type=Path), help="A Markdown file to put the tables into, at its marks.")
@click.option("--quick", is_flag=True, help="Take 3 minutes instead of 17, to see that it works.")
@debug_option
@sentence_errors
def main(bundle: Path, output: Path | None, docs: Path | None, quick: bool) -> None:
    """Measure a server of BUNDLE."""
    results: dict[str, Any] = {
        "architecture": processor(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "quick": quick,
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in _PACKAGES if importlib.util.find_spec(name)},
        **asyncio.run(
            measured(
                bundle,
                *(_QUICK if quick else (_CLOSED_S, _OVERLOAD_S, _NEIGHBORS_S, _DRAIN_S, _MEMORY_S, _CROWDS_S)),
            )
        ),
    }
    for table in tables(results):
        click.echo("\n" + table)
    if output is not None:
        write_json(output, results)
    if docs is not None:
        write_tables(docs, results)
    broken = sum(not holds for _, holds, _ in promises(results))
    click.echo(f"\n{broken} promises were not kept" if broken else "\nevery promise was kept")


async def measured(
    bundle: Path,
    closed_s: float,
    overload_s: float,
    neighbors_s: float,
    drain_s: float,
    memory_s: float,
    crowds_s: float,
) -> dict[str, Any]:
    """Run one phase after the other, with a new server for each kind of phase."""
    found: dict[str, Any] = {"generator": await _generator(closed_s)}
    with serving(bundle) as server:
        wait_until_verified(server.url)
        info = server.get("/info").json()
        workloads = _workloads(info)
        found["engines"] = {name: entry["engine"] for name, entry in info["modalities"].items()}
        found["limits"] = info["limits"]
        found["bare"] = _bare(bundle, workloads, closed_s)
        found["closed"], found["overload"] = {}, {}
        for name, workload in workloads.items():
            click.echo(f"{name}: closed loops")
            async with Client(server.url) as client:
                rows = found["closed"][name] = await closed_phase(server, client, workload, closed_s)
            best = max(rows, key=lambda row: row["requests_per_s"])["concurrency"]
            click.echo(f"{name}: twice the capacity for {overload_s:g} s")
            async with Client(server.url) as client:
                found["overload"][name] = await overload_phase(server, client, workload, overload_s, best)
    workload = workloads["mixed"]
    with serving(bundle) as server:
        wait_until_verified(server.url)
        harm = harmful({name: entry["kind"] for name, entry in info["modalities"].items()}, info["limits"]["items"])
        async with Client(server.url) as client:
            click.echo("beside harmful requests")
            found["neighbors"] = await neighbors_phase(client, workload, harm, neighbors_s)
            click.echo(f"memory over {memory_s:g} s")
            found["memory"] = await memory_phase(server, client, workload, harm, memory_s)
            click.echo("SIGTERM under load")
            found["drain"] = await drain_phase(server, client, workload, drain_s)
    with serving(bundle) as server:
        wait_until_verified(server.url)
        click.echo("beside crowds")
        hostile = crowds({name: entry["kind"] for name, entry in info["modalities"].items()}, info["limits"]["items"])
        found["crowds"] = await crowds_phase(server, workload, hostile, crowds_s)
    return found


def _workloads(info: dict[str, Any]) -> dict[str, list[LoadRequest]]:
    kinds = {name: entry["kind"] for name, entry in info["modalities"].items()}
    text = next(name for name, kind in kinds.items() if kind == "text")
    tokens = info["num_register_tokens"]
    return {"one text": one_text(text, tokens), "mixed": mixed(kinds, tokens)}


def _bare(bundle: Path, workloads: dict[str, list[LoadRequest]], seconds: float) -> dict[str, Any]:
    with load(bundle, spinning=False) as embedder:
        return {name: bare_rates(embedder, workload, seconds) for name, workload in workloads.items()}


async def _generator(seconds: float) -> dict[str, float]:
    """Rate of the load generator against a server that answers at once."""
    idle = subprocess.Popen([sys.executable, "-c", _IDLE_SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert idle.stdout is not None
        async with Client(f"http://127.0.0.1:{int(idle.stdout.readline())}") as client:
            measured = await closed_loop(client, [post("/", b"{}")], 32, min(2.0, seconds))
        return {
            "per_s": round(measured.total / measured.took_s, 1),
            "cpu_us": round(1e6 * measured.generator_cpu_s / measured.total, 1),
        }
    finally:
        idle.kill()
        idle.wait()
        if idle.stdout is not None:
            idle.stdout.close()
