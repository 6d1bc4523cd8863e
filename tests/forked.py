"""Several processes that are one group, as under torchrun, forked from one that has imported what they need.

Each process of torchrun spends seconds on imports; only tests of the command itself need to wait for them.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]


def in_processes(function: str, jobs: Sequence[tuple[int, Sequence[Path]]], folder: Path, *paths: Path) -> None:
    """Run a function in groups of processes, one group after the other.

    Args:
        function: ``module:name``.
        jobs: number of processes, and the function's arguments.
        folder: for a file with the jobs.
        paths: folders in which Python looks for the module, besides the root of the repository.

    Raises:
        AssertionError: a process fails; the message is the end of what it said.
    """
    file = folder / "jobs.json"
    file.write_text(json.dumps([[count, [str(argument) for argument in arguments]] for count, arguments in jobs]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.forked", function, str(file)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths)))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _main(function: str, file: Path) -> None:
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    importlib.import_module("torch._dynamo")  # which a group of several imports
    for count, arguments in json.loads(file.read_text()):
        _together(count, work, [Path(argument) for argument in arguments])


def _together(count: int, work: Callable[..., object], arguments: Sequence[Path]) -> None:
    """Fork a group and wait for it; if one process fails, the others are killed, which would wait for it."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    children = {_fork(rank, count, store.port, work, arguments) for rank in range(count)}
    while children:
        pid, status = os.wait()
        children.remove(pid)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            sys.exit(f"one of {count} processes ended with {os.waitstatus_to_exitcode(status)}")


def _fork(rank: int, count: int, port: int, work: Callable[..., object], arguments: Sequence[Path]) -> int:
    pid = os.fork()
    if pid:
        return pid
    # As torchrun describes a group to its processes, whose store is its own.
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True",
    )  # fmt: skip
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
