"""The features of coming forward passes, read in the background while the step at hand computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.loop.sampler import PairRows

_AHEAD = 2
"""Batches held ready: enough to hide the reading of one, and little memory."""


@dataclass(frozen=True)
class Batch:
    """Input of one forward pass."""

    ids: Tensor
    """int64 (B,)."""
    places: Tensor
    """int64 (B,): positions in the global batch."""
    items: Mapping[str, Tensor]
    """Modality to int64 (B,): row of each item."""
    features: Mapping[str, Tensor]
    """Modality to (B, L, E)."""
    masks: Mapping[str, Tensor]
    """Modality to bool (B, L)."""


def read_batch(sources: Mapping[str, FeatureSource], rows: PairRows, device: torch.device) -> Batch:
    """Read the features of some rows."""
    features, masks = {}, {}
    for modality, source in sources.items():
        features[modality], masks[modality] = source.batch(rows.rows[modality])
    return Batch(
        torch.from_numpy(rows.ids).to(device),
        torch.from_numpy(rows.places).to(device),
        {modality: torch.from_numpy(rows.rows[modality]).to(device) for modality in sources},
        features,
        masks,
    )


class BatchLoader:
    """Reads batches in order in one background thread, a few ahead.

    Use it as a context manager; leaving it ends the thread.

    Args:
        plan: the rows of every batch to come; consumed in the thread.
    """

    def __init__(self, sources: Mapping[str, FeatureSource], plan: Iterable[PairRows], device: torch.device) -> None:
        self._sources = sources
        self._plan = iter(plan)
        self._device = device
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="batch-loader", daemon=True)
        self.waited_s = 0.0
        """Seconds that `next` has waited for data since this was last set to 0."""

    def __enter__(self) -> BatchLoader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        while self._thread.is_alive():
            # The thread may be waiting for room.
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def next(self) -> Batch:
        """Return the next batch of the plan.

        Raises:
            Exception: any error of reading it.
        """
        started = time.perf_counter()
        batch = self._ready.get()
        self.waited_s += time.perf_counter() - started
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def _read(self) -> None:
        try:
            for rows in self._plan:
                if self._closed.is_set():
                    return
                self._put(read_batch(self._sources, rows, self._device))
        except BaseException as error:  # raised again in the thread that asks for the batch
            self._put(error)

    def _put(self, batch: Batch | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(batch, timeout=0.05)
                return
            except queue.Full:
                continue
