"""Building a search index: vectors in, chunk by chunk, and a folder out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fluxtalk.arrays import Floats
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.files import atomic_folder
from fluxtalk.artifacts.index import IndexFiles, IndexManifest, IndexSpec, write_index_manifest
from fluxtalk.errors import IndexFileError, UsageError
from fluxtalk.runtime.index.nearest_neighbors import NearestNeighbors
from fluxtalk.runtime.vectors import directions, quantize
from fluxtalk.tokens import COMPLEMENTARY, TOKENS, side_by_side


def golden_queries(bundle: Bundle, spec: IndexSpec) -> Floats:
    """Give queries of other modalities for an index of a bundle: its golden items, which are real ones.

    Returns:
        (queries, dim), in the form of the index's vectors; of complementary tokens, and if the bundle has a single
        modality, the index's own.

    Raises:
        BundleError: the golden file cannot be read.
    """
    chosen = spec.narrowed(bundle.manifest.layout).select(spec.k, spec.output)
    cases = bundle.golden.batch
    others = [m for m in cases if m != spec.modality and spec.output != COMPLEMENTARY] or [spec.modality]
    parts = []
    for modality in others:
        vectors = chosen.cut(cases[modality].expected[chosen.graph_output])
        if spec.output == TOKENS:
            vectors = directions(vectors[:, 0])
        elif spec.output == COMPLEMENTARY:
            vectors = side_by_side(vectors)
        parts.append(vectors)
    return np.concatenate(parts)


def build_index(
    output: Path,
    chunks: Iterable[Floats],
    items: Sequence[str],
    spec: IndexSpec,
    left_out: int = 0,
    queries: Floats | None = None,
) -> IndexManifest:
    """Write an index, without ever holding all of its tokens in memory.

    Args:
        output: the index's folder; it must not exist, or be empty.
        chunks: the items' vectors (count, dim), or overlapping tokens (count, tokens, dim), a part after the other.
        items: their names.
        spec: which vectors they are.
        left_out: number of items that could not be used.
        queries: (count, dim), like those to come: the graph of a large index is searched as widely as they need
            (`NearestNeighbors.choose_ef_search`). None leaves what usearch takes by itself.

    Raises:
        IndexFileError: the folder is in the way, or another process writes it.
        UsageError: there are not as many vectors as names.
        BackendError: usearch is not installed.
        OSError: the disk is full, or cannot be written.
    """
    with (
        atomic_folder(output, IndexFileError) as folder,
        closing(_TokensWriter(IndexFiles(folder).tokens, len(items), spec.dtype)) as tokens,
    ):
        several = spec.output == TOKENS
        neighbors: NearestNeighbors | None = None
        shape: tuple[int, ...] = ()
        count = 0
        for chunk in chunks:
            count += len(chunk)
            if count > len(items):
                break
            shape = chunk.shape[1:]
            neighbors = neighbors or NearestNeighbors.empty(shape[-1], spec.dtype)
            neighbors.add(directions(chunk[:, 0]) if several else chunk)
            if several:
                tokens.add(chunk)
        if neighbors is None or count != len(items):
            raise UsageError(f"An index needs a vector for each of its {len(items)} names; got {count}.")
        ef_search, graph_recall = (0, 1.0) if queries is None else neighbors.choose_ef_search(queries)
        neighbors.save(IndexFiles(folder).vectors)
        tokens.close()
        return write_index_manifest(folder, output, spec, items, shape, left_out, ef_search, graph_recall)


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
        # Written and not memory-mapped: on a full disk, a map would end the process.
        self._file: BinaryIO | None = None

    def add(self, tokens: Floats) -> None:
        """Append tokens (count, tokens, dim)."""
        stored = np.ascontiguousarray(quantize(tokens, self._dtype))
        if self._file is None:
            self._file = self._path.open("wb")
            header = {
                "descr": np.lib.format.dtype_to_descr(stored.dtype),
                "fortran_order": False,
                "shape": (self._items, *stored.shape[1:]),
            }
            np.lib.format.write_array_header_1_0(self._file, header)
        self._file.write(stored.data)

    def close(self) -> None:
        """Write what is still in memory; closing again does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
