"""Batches by length: items of like length run together, and the order is restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fluxtalk.arrays import Integers


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[Integers]:
    """Divide items into batches that waste little padding.

    Sorted by length, a batch ends when it is full, or when the next item would make the padding exceed an
    eighth of the batch.

    Yields:
        positions of one batch's items; every position once.
    """
    order = np.argsort(lengths, kind="stable")
    start, total = 0, 0
    for end, position in enumerate(order):
        length = lengths[position]
        count = end - start
        padded = (count + 1) * length
        if count and (count == batch_size or padded - (total + length) > padded / 8):
            yield order[start:end]
            start, total = end, 0
        total += length
    if start < len(order):
        yield order[start:]
