"""Encoding ahead of training by processes that Ray starts: here, or on the cluster at ``RAY_ADDRESS``.

They form the group that torchrun would make of them, so that shards are dealt, resumed and finished by the same code.
All see the same paths: encoders, data and cache.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from fluxtalk.errors import BackendError
from fluxtalk.train.distributed import join_process_group


def prebuild_on_ray(
    build: Callable[..., Any], device: str, stage1_checkpoint: Path, trusted: Callable[[], None] | None = None
) -> None:
    """Run a build in as many processes as Ray has GPUs, or CPUs if it has none or ``device`` is ``cpu``.

    Args:
        build: `prebuild.prebuild` but for its device, group and log, which are each process's.
        device: ``auto``, ``cpu`` or ``cuda``.
        stage1_checkpoint: opened by every process.
        trusted: called in each process before anything is opened.

    Raises:
        BackendError: Ray is not installed, or has no such device.
        FluxTalkError: as for `prebuild`.
    """
    # What people encode is nobody's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.exceptions import RayTaskError
    except ImportError:
        raise BackendError("Ray is not installed; pip install 'fluxtalk[ray]'.") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        gpus = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        size = gpus or int(ray.cluster_resources().get("CPU", 0))
        if not size or (device == "cuda" and not gpus):
            raise BackendError(f"Ray has no {'GPU' if device == 'cuda' else 'CPU'}; add a node, or change --device.")
        remote = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(_Process)
        processes = [remote.remote() for _ in range(size)]
        host, port = ray.get(processes[0].address.remote())
        run = partial(_build, build, "cuda" if gpus else "cpu", stage1_checkpoint, trusted)
        jobs = [process.run.remote(run, rank, size, host, port) for rank, process in enumerate(processes)]
        try:
            told: list[str] = ray.get(jobs)[0]  # the first that fails raises; the others are ended below
        except RayTaskError as error:
            raise error.cause from None
        for line in told:
            click.echo(line)
    finally:
        if started:
            ray.shutdown()


class _Process:
    """One process of the group."""

    def address(self) -> tuple[str, int]:
        """Find an address of this machine, and a port that is free, for the group to meet at."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), int(free.getsockname()[1])

    def run(self, work: Callable[[], list[str]], rank: int, size: int, host: str, port: int) -> list[str]:
        """Work as one of the group."""
        os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(size), MASTER_ADDR=host, MASTER_PORT=str(port))
        return work()


def _build(
    build: Callable[..., Any], device: str, stage1_checkpoint: Path, trusted: Callable[[], None] | None
) -> list[str]:
    told: list[str] = []
    if trusted is not None:
        trusted()
    with join_process_group(device) as (group, torch_device):
        build(stage1_checkpoint, device=torch_device, group=group, say=told.append)
    return told
