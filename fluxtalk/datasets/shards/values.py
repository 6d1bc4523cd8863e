"""Items of shards, each read by its byte offset when it is asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.arrays import Integers
from fluxtalk.errors import DataError, InputError, reason


class ShardValues(Sequence[Any]):
    """Members of tar files as values: text as ``str``, `.npy` as an array, anything else as bytes.

    Nothing is kept open between two items, so it can be pickled and read by several threads and processes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        extensions: Sequence[str],
        shards: Integers,
        offsets: Integers,
        sizes: Integers,
        kinds: Integers,
    ) -> None:
        """Name the members.

        Args:
            paths: the tar files.
            extensions: endings of the members' names.
            shards: (items,) indices into ``paths``.
            offsets: (items,) offset of each member's first byte.
            sizes: (items,) bytes of each member.
            kinds: (items,) indices into ``extensions``.
        """
        self._paths = paths
        self._extensions = extensions
        self._members = (shards, offsets, sizes, kinds)

    def __len__(self) -> int:
        return len(self._members[0])

    def __getitem__(self, index: Any) -> Any:
        """The value of this row, or another `ShardValues` for a slice.

        Raises:
            DataError: the shard was changed since it was indexed.
            InputError: the member is not what its extension says.
        """
        if isinstance(index, slice):
            return ShardValues(self._paths, self._extensions, *(part[index] for part in self._members))
        shard, offset, size, kind = (int(part[index]) for part in self._members)
        path = self._paths[shard]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
            if len(data) != size:
                raise OSError("it ends too early")
        except OSError as error:
            raise DataError(
                f"The shard {path} was changed while it was used: the member at byte {offset} cannot be read "
                f"({reason(error)}); start again."
            ) from None
        return decode(self._extensions[kind], data)

    def take(self, rows: Integers) -> ShardValues:
        """Select rows, in this order."""
        return ShardValues(self._paths, self._extensions, *(part[rows] for part in self._members))


def decode(extension: str, data: bytes) -> Any:
    """Decode a member by its extension: ``txt`` to ``str``, ``npy`` to an array; any other stays bytes.

    Raises:
        InputError: it is not UTF-8, or not a `.npy` file.
    """
    form = extension.rsplit(".")[-1]
    if form == "txt":
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"it must be UTF-8 text ({reason(error)}).") from None
    if form == "npy":
        try:
            return np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"it must be saved by numpy.save ({reason(error)}).") from None
    return data
