"""The processes that share a batch, as losses see them; `fluxtalk.train.distributed` joins torchrun's."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ProcessGroup(Protocol):
    """The processes that share a batch."""

    size: int
    rank: int

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate (B, ...) of every process in rank order: (size * B, ...), differentiable."""

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Sum over all processes, not differentiable."""


class SingleProcess:
    """A process group of one."""

    size = 1
    rank = 0

    def all_gather(self, x: Tensor) -> Tensor:
        """Return the same tensor."""
        return x

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Return the same numbers."""
        return x.detach()
