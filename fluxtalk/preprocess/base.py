"""The contract of preprocessing: one raw item in, one array out; arrays in, one padded batch out.

Training, export and serving call the same objects. Two implementations of preprocessing would be two
different embedding spaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fluxtalk.arrays import Array, Booleans
from fluxtalk.errors import ArtifactError


class Preprocessor(Protocol):
    """Turns raw items of one modality into the arrays that its graph takes."""

    @property
    def kind(self) -> str:
        """``image``, ``text``, ``audio`` or ``features``."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the arrays in a batch, in the order of the graph's inputs."""

    @property
    def fixed_length(self) -> bool:
        """True if every prepared item has the same length, all of which the encoder reads: no mask hides a part."""

    def prepare(self, item: Any) -> Array:
        """Decode one raw item.

        Raises:
            InputError: the item cannot be used.
        """

    def collate(self, prepared: Sequence[Array]) -> dict[str, Array]:
        """Pad prepared items to a batch, keyed by `input_names`."""

    def length(self, prepared: Array) -> int:
        """Length of a prepared item, with which its cost grows; items of equal length need no padding."""

    def to_parts(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Settings in JSON and text files by name, which `fluxtalk.preprocess.from_parts` reads back."""


def pad_and_mask(rows: Sequence[Array], dtype: type[np.generic]) -> tuple[Array, Booleans]:
    """Stack arrays of different first dimension, zero-padded at the end.

    Args:
        rows: arrays (length_i, ...) with equal trailing dimensions; at least one.

    Returns:
        values (batch, max length, ...) and mask (batch, max length), True for entries of a row, False for padding. The
        values of a single row are not copied.
    """
    if len(rows) == 1:
        return rows[0][None].astype(dtype, copy=False), np.ones((1, rows[0].shape[0]), dtype=bool)
    longest = max(row.shape[0] for row in rows)
    values = np.zeros((len(rows), longest, *rows[0].shape[1:]), dtype=dtype)
    mask = np.zeros((len(rows), longest), dtype=bool)
    for index, row in enumerate(rows):
        values[index, : row.shape[0]] = row
        mask[index, : row.shape[0]] = True
    return values, mask


def require_keys(config: Mapping[str, Any], known: set[str], what: str) -> None:
    """Refuse configuration keys that nothing reads."""
    unknown = sorted(set(config) - known - {"kind"})
    if unknown:
        raise ArtifactError(
            f"The {what} preprocessing has unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}."
        )
