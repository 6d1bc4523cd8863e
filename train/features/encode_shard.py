"""Encoding the items of one shard; an item that cannot be used has no vector, and harms no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fluxtalk.errors import DataError
from fluxtalk.train.features.encode_batch import EncodeBatch
from fluxtalk.train.features.encoding import Encoding

Decoded = NDArray[Any] | str
"""A decoded item, or why it cannot be used."""
_NOT_FINITE = {
    "int8": "NaN or infinite",
    "fp16": "NaN, infinite or above 65,504, the limit of half precision",
}
_TELLING = 16
"""Items none of which can be used, from which on not the items but their source or the encoder is at fault."""


@dataclass(frozen=True)
class EncodedShard:
    """Features of consecutive items, as a shard's files hold them."""

    values: NDArray[Any]
    """(vectors, dim): one item's vectors after the other's."""
    lengths: NDArray[np.int32]
    """(items,): vectors of each; 0 of one that cannot be used."""
    scales: NDArray[np.float32] | None
    """(vectors,), with int8 alone."""
    bad: Mapping[int, str]
    """Row of each item that cannot be used, to the reason."""


def encode_shard(
    encoding: Encoding, decoded: Sequence[Decoded], rows: range, batch: EncodeBatch, dtype: str, bar: Any
) -> EncodedShard:
    """Encode one shard's items, in their order.

    Args:
        rows: rows of the items.
        batch: chooses how many at a time.
        dtype: type that is stored.
        bar: progress bar, which is told of each item.

    Raises:
        DataError: the encoder fails on every item of a batch.
    """
    bad = {row: item for row, item in zip(rows, decoded, strict=True) if isinstance(item, str)}
    usable = [(row, item) for row, item in zip(rows, decoded, strict=True) if not isinstance(item, str)]
    bar.update(len(bad))
    vectors = dict.fromkeys(rows, np.empty((0, encoding.reduction.dim), np.int8 if dtype == "int8" else np.float16))
    scales = dict.fromkeys(rows, np.empty(0, np.float32))
    # Equal lengths together: no time goes into padding.
    order = sorted(range(len(usable)), key=lambda i: encoding.preprocess.length(usable[i][1]))
    size = batch.size([item for _, item in usable], [row for row, _ in usable])
    for part in np.array_split(order, -(-len(order) // size)) if order else ():
        chunk = [usable[i] for i in part.tolist()]
        for chunk_rows, features in encoding.encode_usable(chunk, bad):
            counts = features.mask_BL.sum(dim=1).cpu().numpy()
            stored, factors, finite = _stored(features.features_BLD[features.mask_BL], dtype)
            ends = np.cumsum(counts)
            for row, start, end in zip(chunk_rows, (ends - counts).tolist(), ends.tolist(), strict=True):
                if start == end:
                    bad[row] = "it has no feature vector at all"
                elif not finite[start:end].all():
                    bad[row] = f"its features are {_NOT_FINITE[dtype]}"
                else:
                    vectors[row], scales[row] = stored[start:end], factors[start:end]
        bar.update(len(chunk))
    lengths = np.array([len(vectors[row]) for row in rows], dtype=np.int32)
    values = np.concatenate([vectors[row] for row in rows])
    joined = np.concatenate([scales[row] for row in rows]) if dtype == "int8" else None
    return EncodedShard(values, lengths, joined, dict(sorted(bad.items())))


def require_some(encoding: Encoding, items: int, bad: Mapping[int, str]) -> None:
    """Stop encoding if not one of a shard's items can be used, and there are enough of them to tell.

    Raises:
        DataError: names the first of them.
    """
    if items >= _TELLING and len(bad) == items:
        row, why = next(iter(bad.items()))
        raise DataError(
            f"Not one of {items} items that follow each other can be encoded, so encoding ends here. "
            f"{encoding.named(row)}: {why}; correct the data or the encoder."
        )


def quantize(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize (V, D) float32 to int8 codes and float32 scales (V,): codes times scale is within half a scale."""
    scales = vectors.abs().amax(dim=1) / 127
    codes = (vectors / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
    return codes.to(torch.int8), scales


def _stored(vectors: Tensor, dtype: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Convert (V, D) to the stored type, with scales (V,), which are 1 in float16; and tell which are finite, (V,)."""
    if dtype == "int8":
        codes, scales = quantize(vectors)
        finite = scales.isfinite()
    else:
        codes, scales = vectors.half(), torch.ones(len(vectors))
        finite = codes.isfinite().all(dim=1)
    return codes.cpu().numpy(), scales.cpu().numpy(), finite.cpu().numpy()
