"""Building a search index: vectors in, chunk by chunk, and a folder out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fluxtalk.arrays import Array, Floats
from fluxtalk.artifacts.files import atomic_folder
from fluxtalk.artifacts.index import IndexFiles, IndexManifest, IndexSpec, write_index_manifest
from fluxtalk.errors import IndexFileError, UsageError
from fluxtalk.runtime.index.nearest_neighbors import NearestNeighbors
from fluxtalk.runtime.vectors import directions, quantize
from fluxtalk.tokens import TOKENS


def build_index(
    output: Path, chunks: Iterable[Floats], items: Sequence[str], spec: IndexSpec, left_out: int = 0
) -> IndexManifest:
    """Write an index, without ever holding all of its tokens in memory.

    Args:
        output: the index's folder; it must not exist, or be empty.
        chunks: the items' vectors (count, dim), or overlapping tokens (count, tokens, dim), a part after the other.
        items: their names.
        spec: which vectors they are.
        left_out: number of items that could not be used.

    Raises:
        IndexFileError: the folder is in the way.
        UsageError: there are not as many vectors as names.
        BackendError: usearch is not installed.
    """
    with atomic_folder(output, IndexFileError) as folder:
        files = IndexFiles(folder)
        neighbors: NearestNeighbors | None = None
        tokens = _TokensWriter(files.tokens, len(items), spec.dtype) if spec.output == TOKENS else None
        shape: tuple[int, ...] = ()
        count = 0
        for chunk in chunks:
            count += len(chunk)
            if count > len(items):
                break
            shape = chunk.shape[1:]
            neighbors = neighbors or NearestNeighbors.empty(shape[-1], spec.dtype)
            neighbors.add(chunk if tokens is None else directions(chunk[:, 0]))
            if tokens is not None:
                tokens.add(chunk)
        if neighbors is None or count != len(items):
            raise UsageError(f"An index needs a vector for each of its {len(items)} names; got {count}.")
        neighbors.save(files.vectors)
        if tokens is not None:
            tokens.close()
        return write_index_manifest(folder, output, spec, items, shape, left_out)


class _TokensWriter:
    """Tokens on their way to disk.

    Args:
        path: the ``.npy`` to write.
        items: number of items that there will be.
        dtype: one of `fluxtalk.runtime.vectors.DTYPES`.
    """

    def __init__(self, path: Path, items: int, dtype: str) -> None:
        self._path = path
        self._items = items
        self._dtype = dtype
        self._file: Array | None = None
        self._written = 0

    def add(self, tokens: Floats) -> None:
        """Append tokens (count, tokens, dim)."""
        stored = quantize(tokens, self._dtype)
        if self._file is None:
            self._file = np.lib.format.open_memmap(
                self._path, mode="w+", dtype=stored.dtype, shape=(self._items, *stored.shape[1:])
            )
        self._file[self._written : self._written + len(stored)] = stored
        self._written += len(stored)

    def close(self) -> None:
        """Write what is still in memory."""
        if isinstance(self._file, np.memmap):
            self._file.flush()
        self._file = None
