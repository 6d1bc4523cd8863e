"""The processes that share a batch, as losses see them; `fluxtalk.train.distributed` has the real ones."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class World(Protocol):
    """The processes that share a batch."""

    size: int
    rank: int

    def gather(self, x: Tensor) -> Tensor:
        """(B, ...) of every process in rank order: (size * B, ...), differentiable."""

    def total(self, x: Tensor) -> Tensor:
        """The sum over all processes, not differentiable."""


class OneProcess:
    """A world of one."""

    size = 1
    rank = 0

    def gather(self, x: Tensor) -> Tensor:
        """The same tensor."""
        return x

    def total(self, x: Tensor) -> Tensor:
        """The same numbers."""
        return x.detach()
