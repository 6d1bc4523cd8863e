"""Number of items that an encoder takes at a time, from what two of them take in memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fluxtalk.console import Log
from fluxtalk.devices.memory import available_memory
from fluxtalk.errors import DataError
from fluxtalk.train.features.encoding import Encoding

MOST = 256
"""Items at a time on a GPU, if memory allows."""
MOST_ON_CPU = 16
"""Items at a time on a processor: 256 pictures took 1.6 times as long, by mapping memory anew (docs/LOG.md)."""
_FEW = 16
"""Items that are encoded without a trial."""
_TRIED = 2
_SHARE = 0.5
"""Share of the available memory that a batch may take: libraries use more than the tensors that are counted."""


def most_at_a_time(device: torch.device) -> int:
    """Number of items that a batch has on a device if memory allows."""
    return MOST_ON_CPU if device.type == "cpu" else MOST


class EncodeBatch:
    """Chooses the items of a batch, by a trial on the largest item so far.

    Args:
        say: receives a line if memory allows fewer than `most_at_a_time`.
        available: bytes that may be taken; None asks the device or the machine.
    """

    def __init__(self, encoding: Encoding, say: Log, available: int | None = None) -> None:
        self._encoding = encoding
        self._say = say
        self._available = available
        self._bytes_of_length: dict[int, int] = {}
        self._most = most_at_a_time(encoding.device)
        self._said = self._most

    def size(self, prepared: Sequence[NDArray[Any]], rows: Sequence[int]) -> int:
        """Return how many of these items to encode at a time: 1 to `most_at_a_time`.

        Args:
            prepared: decoded items.
            rows: their rows.
        """
        if len(prepared) <= _FEW:
            return self._most
        length, largest = max((self._encoding.preprocess.length(item), n) for n, item in enumerate(prepared))
        if length not in self._bytes_of_length:
            try:
                self._bytes_of_length[length] = self._trial(prepared[largest], rows[largest])
            except DataError:  # the item may be a bad one, which its batch will tell
                return _FEW
        each = self._bytes_of_length[length]
        available = self._available if self._available is not None else _available(self._encoding.device)
        if available is None or not each:
            return self._most
        size = max(1, min(self._most, int(_SHARE * available / each)))
        if size < self._said:
            self._said = size
            self._say(
                f"encoding {size} {self._encoding.modality} items at a time: one takes {each / 1e6:.0f} MB, "
                f"{available / 1e9:.1f} GB of memory are available"
            )
        return size

    def _trial(self, prepared: NDArray[Any], row: int) -> int:
        """Bytes that an item takes at most while it is encoded."""
        live = LiveBytes()
        with live:
            self._encoding.encode([prepared] * _TRIED, [row] * _TRIED)
        return live.peak // _TRIED


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while entered, the bytes of all tensors that operators made and that are still in use."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        """Most bytes at any time."""
        self._live = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it returns."""
        # A view of a weight or an input takes no memory.
        for storage in _storages((args, kwargs)):
            self._known.add(storage)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._known:
                self._known.add(storage)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return result

    def _free(self, size: int) -> None:
        self._live -= size


def _storages(values: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _available(device: torch.device) -> int | None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_memory()
