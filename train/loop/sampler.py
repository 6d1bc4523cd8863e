"""Sampling of a batch's rows: the same global batch however many processes share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluxtalk.datasets.pairs import Split
from fluxtalk.errors import UsageError
from fluxtalk.model.head.nested_dropout import derive_seed

ABSENT = -1
"""The row of an id that has no item of a modality."""


@dataclass(frozen=True)
class PairRows:
    """Rows of a global batch."""

    ids: NDArray[np.int64]
    """(B,) indices into `Split.ids`."""
    rows: Mapping[str, NDArray[np.int64]]
    """Modality to (B,) items, one drawn for each id; `ABSENT` if the id has none."""
    places: NDArray[np.int64]
    """(B,) positions in the global batch, which random draws depend on."""

    def part(self, rows: slice) -> PairRows:
        """Return some of these rows."""
        return PairRows(self.ids[rows], {m: r[rows] for m, r in self.rows.items()}, self.places[rows])


class PairSampler:
    """Visits the ids in a new order in every epoch, and draws items of each id and modality.

    All draws depend on (seed, epoch, step) and the global batch, of which each process takes its rows.
    The ids left over at the end of an epoch, fewer than a global batch, wait for the next order.

    Args:
        batch_size_per_process: rows of one forward pass of one process.
        accum_steps: forward passes of each process that make one step.
        items_per_id: rows of each id in a batch; different items of it if it has as many.

    Raises:
        UsageError: the global batch would have fewer than two ids, which leaves nothing to contrast, or does not
            divide into ``items_per_id``.
    """

    def __init__(
        self,
        split: Split,
        batch_size_per_process: int,
        processes: int,
        rank: int,
        seed: int,
        accum_steps: int = 1,
        items_per_id: int = 1,
    ) -> None:
        passes = processes * accum_steps
        self.asked = batch_size_per_process * passes
        rows = min(batch_size_per_process, len(split.ids) * items_per_id // passes)
        self.global_batch = rows * passes
        if self.global_batch % items_per_id:
            raise UsageError(
                f"The global batch of {self.global_batch} rows does not divide into --items-per-id {items_per_id}; "
                "choose another --batch-size."
            )
        self.ids_per_batch = self.global_batch // items_per_id
        if self.ids_per_batch < 2:
            raise UsageError(
                "A contrastive step needs a global batch of at least 2 ids; "
                f"--batch-size {batch_size_per_process} with {processes} process(es) "
                f"on {len(split.ids)} training ids gives {self.ids_per_batch}."
            )
        self.steps_per_epoch = len(split.ids) // self.ids_per_batch
        self.accum_steps = accum_steps
        self.negatives: NDArray[np.int64] | None = None
        """Hard negatives of each id, (ids, N), that share an anchor's batch; `ABSENT` if it has fewer."""
        self._ids = len(split.ids)
        self._items_per_id = items_per_id
        self._seed = seed
        self._epoch_and_order: tuple[int, NDArray[np.int64]] | None = None
        share = self.global_batch // processes
        self.local = slice(rank * share, (rank + 1) * share)
        self._first = {m: np.searchsorted(items.groups, np.arange(self._ids)) for m, items in split.items.items()}
        self._count = {m: np.bincount(items.groups, minlength=self._ids) for m, items in split.items.items()}

    @property
    def several_items(self) -> tuple[str, ...]:
        """Name the modalities of which a batch can hold two or more different items of an id."""
        return tuple(m for m, count in self._count.items() if min(self._items_per_id, count.max(initial=0)) > 1)

    def batch(self, epoch: int, step: int) -> PairRows:
        """Return this process's rows of step ``step`` (from 0) of epoch ``epoch`` (from 0)."""
        if self.negatives is None:
            ids = self._order(epoch)[step * self.ids_per_batch : (step + 1) * self.ids_per_batch]
        else:
            ids = self._with_negatives(self.negatives, epoch, step)
        rows = {}
        for modality, count in self._count.items():
            generator = np.random.default_rng(derive_seed(self._seed, "item", modality, epoch, step))
            # In turn from a random one on: an id's rows hold different items if there are as many.
            start = generator.integers(np.maximum(count[ids], 1))[:, None] + np.arange(self._items_per_id)
            chosen = self._first[modality][ids, None] + start % np.maximum(count[ids], 1)[:, None]
            rows[modality] = np.where(count[ids, None], chosen, ABSENT).reshape(-1)
        places = np.arange(self.global_batch)
        return PairRows(np.repeat(ids, self._items_per_id), rows, places).part(self.local)

    def first_items(self) -> dict[str, NDArray[np.int64]]:
        """Return the first item of each id, by modality: (ids,); `ABSENT` if the id has none."""
        return {m: np.where(count > 0, self._first[m], ABSENT) for m, count in self._count.items()}

    def _with_negatives(self, negatives: NDArray[np.int64], epoch: int, step: int) -> NDArray[np.int64]:
        """Compose a batch of anchors, each with its hard negatives; duplicates make room for ids drawn at random.

        Anchors are visited in turn, from epoch to epoch: with N negatives each id is one about every N + 1 epochs.
        """
        count = self.ids_per_batch // (negatives.shape[1] + 1)
        places = (epoch * self.steps_per_epoch + step) * count + np.arange(count)
        laps = places // self._ids
        anchors = np.concatenate(
            [self._order(lap)[places[laps == lap] % self._ids] for lap in np.unique(laps).tolist()]
        )
        chosen = np.concatenate([anchors[:, None], negatives[anchors]], axis=1).reshape(-1)
        chosen = chosen[chosen != ABSENT]
        chosen = chosen[np.sort(np.unique(chosen, return_index=True)[1])]
        others = np.setdiff1d(np.arange(self._ids), chosen)
        generator = np.random.default_rng(derive_seed(self._seed, "beside negatives", epoch, step))
        return np.concatenate([chosen, generator.choice(others, self.ids_per_batch - len(chosen), replace=False)])

    def passes(self, batch: PairRows) -> list[PairRows]:
        """Divide a process's rows of one step into its forward passes."""
        size = len(batch.ids) // self.accum_steps
        return [batch.part(slice(start, start + size)) for start in range(0, len(batch.ids), size)]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        # Read once, because another thread may ask for another epoch's order.
        known = self._epoch_and_order
        if known is None or known[0] != epoch:
            generator = np.random.default_rng(derive_seed(self._seed, "order", epoch))
            known = self._epoch_and_order = (epoch, generator.permutation(self._ids))
        return known[1]
