"""Number formats of vectors, and similarities between vectors in any of them. Numpy only.

=========  ==============  ===========================================================================================
dtype      numpy type      stored form of a vector x of D numbers
=========  ==============  ===========================================================================================
float32    float32         itself
float16    float16         each number rounded
int8       int8            ``round(127 x / max|x|)``, the largest over the vector itself: no calibration, and since a
                           cosine ignores lengths, only rounding is lost; the length of x is lost.
binary     uint8           one bit for each number, 1 if it is above 0, packed by `numpy.packbits`: ceil(D / 8)
                           bytes, the first number in the highest bit, zeros after the last
=========  ==============  ===========================================================================================

Vectors are along the last dimension. An array's numpy type tells its format.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk import tokens as token_algebra
from fluxtalk.arrays import BITS_PER_NUMBER, Array, Floats, Integers
from fluxtalk.errors import UsageError

DTYPES = tuple(BITS_PER_NUMBER)

Vectors = Array
"""Vectors (..., D) in any of `DTYPES`; binary (..., ceil(D / 8))."""


def quantize(vectors: NDArray[np.floating[Any]], dtype: str) -> Vectors:
    """Convert vectors (..., D) to one of `DTYPES`.

    Raises:
        UsageError: the type is unknown, or float16 cannot hold a number.
    """
    if dtype == "float32":
        return vectors.astype(np.float32, copy=False)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = vectors.astype(np.float16)
        if np.isinf(half).any() and np.isfinite(vectors).all():
            raise UsageError(
                f"float16 holds numbers up to 65504; got {np.abs(vectors).max():.3g}: ask for float32 or int8."
            )
        return half
    if dtype == "int8":
        largest = np.abs(vectors).max(axis=-1, keepdims=True, initial=0.0)
        return np.rint(vectors / np.where(largest > 0, largest, 1) * 127).astype(np.int8)
    if dtype == "binary":
        return np.packbits(vectors > 0, axis=-1)
    raise UsageError(f"dtype is one of {', '.join(DTYPES)}; got {dtype!r}.")


def directions(vectors: Vectors, dim: int | None = None) -> Floats:
    """Directions of vectors in any format: float32 (..., D), of length 1. Binary ones become -1 and 1 first.

    Args:
        dim: D, needed if it is not a multiple of 8 and the vectors are binary.
    """
    if vectors.dtype == np.uint8:
        bits = np.unpackbits(vectors, axis=-1, count=dim)
        return token_algebra.l2_normalize(bits.astype(np.float32) * 2 - 1)
    return token_algebra.l2_normalize(vectors.astype(np.float32, copy=False))


def similarity(a: Vectors, b: Vectors) -> Floats:
    """Cosines of every vector of ``a`` with every vector of ``b``, in any two formats: float32 (A, B).

    For two binary vectors it is ``1 - 2 hamming / bits``. Formats may be mixed: a query in float32 finds more among
    binary vectors than a binary query.

    Args:
        a: (A, D), or (D,) for a single one.
        b: (B, D), or (D,).

    Raises:
        UsageError: the dimensions differ.
    """
    left, right = _same_dim(np.atleast_2d(a), np.atleast_2d(b))
    cosines: Floats = left @ right.T
    return cosines


def hamming(a: Vectors, b: Vectors) -> Integers:
    """Number of bits in which every binary vector of ``a`` differs from every one of ``b``: int64 (A, B).

    Args:
        a: uint8 (A, bytes), or (bytes,).
        b: uint8 (B, bytes), or (bytes,).

    Raises:
        UsageError: they are not binary, or of different lengths.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.shape[-1] != b.shape[-1]:
        raise UsageError(
            "hamming compares binary vectors (uint8) of one length; "
            f"got {a.dtype} with {a.shape[-1]} and {b.dtype} with {b.shape[-1]} bytes."
        )
    left, right = np.unpackbits(a, axis=-1).astype(np.float32), np.unpackbits(b, axis=-1).astype(np.float32)
    either: Floats = left.sum(axis=1)[:, None] + right.sum(axis=1)[None]
    return (either - 2 * (left @ right.T)).astype(np.int64)


def maxsim(a: Vectors, b: Vectors) -> Floats:
    """Late interaction of every item of ``a`` with every one of ``b``: float32 (A, B), in -1..1.

    The score is the mean, over the tokens of a, of each token's largest cosine with a token of b. Pass only overlapping
    tokens (`Embedder.num_overlapping`): complementary ones do not compare between modalities.

    Args:
        a: (A, tokens, D) in any format, or (tokens, D) for a single item.
        b: (B, tokens, D), or (tokens, D).

    Raises:
        UsageError: the dimensions differ.
    """
    left, right = _same_dim(_items(a), _items(b))
    return token_algebra.maxsim(left, right)


def _items(tokens: Vectors) -> Vectors:
    return tokens[None] if tokens.ndim == 2 else tokens


def _same_dim(a: Vectors, b: Vectors) -> tuple[Floats, Floats]:
    dim = next((int(x.shape[-1]) for x in (a, b) if x.dtype != np.uint8), 8 * int(a.shape[-1]))
    for x in (a, b):
        if x.shape[-1] != (-(-dim // 8) if x.dtype == np.uint8 else dim):
            shown = " and ".join(f"{x.shape[-1]} x {x.dtype}" for x in (a, b))
            raise UsageError(f"Vectors that are compared have one dimension; got {shown}.")
    return directions(a, dim), directions(b, dim)
