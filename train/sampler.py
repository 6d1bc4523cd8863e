"""Which pairs make a batch: the same global batch however many processes share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluxtalk.datasets.pairs import Split
from fluxtalk.errors import UsageError
from fluxtalk.model.nested_dropout import derive_seed


@dataclass(frozen=True)
class PairRows:
    """One process's part of a global batch."""

    ids: NDArray[np.int64]
    """(B,) indices into `Split.ids`."""
    rows: Mapping[str, NDArray[np.int64]]
    """Modality to (B,) item rows, one drawn for each id."""


class PairSampler:
    """Every epoch visits the ids in a new order, and draws one item per id and modality.

    All draws depend on (seed, epoch, step) and the global batch, of which each process takes its rows.
    The ids left over at the end of an epoch, fewer than a global batch, wait for the next order.

    Raises:
        UsageError: the global batch would have fewer than two ids, which leaves nothing to contrast.
    """

    def __init__(self, split: Split, batch_size_per_process: int, processes: int, rank: int, seed: int) -> None:
        self.global_batch = min(batch_size_per_process, len(split.ids) // processes) * processes
        if self.global_batch < 2:
            raise UsageError(
                "A contrastive step needs a global batch of at least 2 ids; "
                f"--batch_size {batch_size_per_process} with {processes} process(es) "
                f"on {len(split.ids)} training ids gives {self.global_batch}."
            )
        self.steps_per_epoch = len(split.ids) // self.global_batch
        self._ids = len(split.ids)
        self._seed = seed
        self._epoch_and_order: tuple[int, NDArray[np.int64]] | None = None
        share = self.global_batch // processes
        self.local = slice(rank * share, (rank + 1) * share)
        self._first = {m: np.searchsorted(items.groups, np.arange(self._ids)) for m, items in split.items.items()}
        self._count = {m: np.bincount(items.groups, minlength=self._ids) for m, items in split.items.items()}

    def batch(self, epoch: int, step: int) -> PairRows:
        """This process's rows of step ``step`` (from 0) of epoch ``epoch`` (from 0)."""
        ids = self._order(epoch)[step * self.global_batch : (step + 1) * self.global_batch]
        rows = {}
        for modality, count in self._count.items():
            generator = np.random.default_rng(derive_seed(self._seed, "item", modality, epoch, step))
            chosen = self._first[modality][ids] + generator.integers(count[ids])
            rows[modality] = chosen[self.local]
        return PairRows(ids[self.local], rows)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._epoch_and_order is None or self._epoch_and_order[0] != epoch:
            generator = np.random.default_rng(derive_seed(self._seed, "order", epoch))
            self._epoch_and_order = (epoch, generator.permutation(self._ids))
        return self._epoch_and_order[1]
