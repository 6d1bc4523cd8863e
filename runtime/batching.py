"""Batches of items of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fluxtalk.arrays import Integers

MAX_PADDING_SHARE = 1 / 8
"""Largest share of a batch that may be padding."""


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[Integers]:
    """Divide items into batches with little padding.

    Items are sorted by length; a batch ends when it is full, or when the next item would make padding exceed
    `MAX_PADDING_SHARE` of the batch.

    Args:
        lengths: length of each item.
        batch_size: largest number of items in a batch.

    Yields:
        Positions of one batch's items in ``lengths``; every position once.
    """
    order = np.argsort(lengths, kind="stable")
    start, total = 0, 0
    for end, position in enumerate(order):
        length = lengths[position]
        count = end - start
        padded = (count + 1) * length
        if count and (count == batch_size or padded - (total + length) > padded * MAX_PADDING_SHARE):
            yield order[start:end]
            start, total = end, 0
        total += length
    if start < len(order):
        yield order[start:]
