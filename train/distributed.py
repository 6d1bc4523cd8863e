"""The processes of a torchrun: their ranks, and the sums and gathers between them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from fluxtalk.errors import BackendError, UsageError
from fluxtalk.model.process_group import ProcessGroup, SingleProcess


class TorchProcessGroup:
    """The `ProcessGroup` of an initialized torch.distributed group."""

    def __init__(self) -> None:
        self.size = dist.get_world_size()
        self.rank = dist.get_rank()

    def all_gather(self, x: Tensor) -> Tensor:
        """See `ProcessGroup.all_gather`."""
        if x.is_floating_point():
            return _Gather.apply(x)  # type: ignore[no-untyped-call, no-any-return]
        if x.dtype == torch.bool:
            return _all_gather(x.to(torch.uint8)).bool()
        return _all_gather(x)

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """See `ProcessGroup.all_reduce_sum`."""
        home, x = x.device, x.detach().clone()
        if dist.get_backend() == "nccl":
            x = x.cuda()
        dist.all_reduce(x)
        return x.to(home)


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums every process's gradient of this process's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return _all_gather(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


@contextmanager
def join_process_group(device_name: str) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """Join the group that torchrun describes in the environment, if any; leave it at the end.

    Args:
        device_name: ``auto`` (CUDA if there is one), ``cpu`` or ``cuda``.

    Raises:
        BackendError: CUDA was asked for and there is none.
        UsageError: the device is unknown.
    """
    device = _device(device_name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SingleProcess(), device
        return
    # The first optimizer imports this module, which keeps a reference to a group that exists by then. The group's
    # threads then outlive the group, and now and then abort the process by dropping a tensor while Python ends.
    importlib.import_module("torch._dynamo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The first process may encode a large data set while the others wait.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=12))
    try:
        yield TorchProcessGroup(), device
    finally:
        dist.destroy_process_group()


@contextmanager
def wait_for_first(group: ProcessGroup) -> Iterator[None]:
    """Run the block in the first process, then in the others, which find its files on disk."""
    if group.rank:
        group.all_reduce_sum(torch.zeros(1))
    yield
    if not group.rank:
        group.all_reduce_sum(torch.zeros(1))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device is auto, cpu or cuda; got {name!r}.")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BackendError("--device cuda was asked for, but PyTorch finds no CUDA device here; use --device cpu.")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
