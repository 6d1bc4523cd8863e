"""usearch's file, validated before the library maps it: the library trusts every number that the file holds.

::

    rows u32, bytes of a vector u32, vectors (rows, bytes)
    head, 64 bytes: "usearch", version, metric, types, counts, dimensions
    rows u64, connectivity u64, connectivity of the base u64, highest level u64, first slot u64
    levels i16 (rows,)
    rows nodes: key u64, level i16, the neighbors on the base, and those on each of its levels above
    neighbors: count u32, slots u32 (connectivity,), of which the first `count` are used

A search follows slots from the first one down, level by level: a slot that is not there, or has no neighbors on that
level, would be read from beyond the file. The layout is that of usearch 2 (`index_dense.hpp` and `index.hpp`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fluxtalk.arrays import Array, vector_bytes
from fluxtalk.errors import IndexFileError

_MATRIX = struct.Struct("<II")
_HEAD = struct.Struct("<7s3H4B3QB22x")
_GRAPH = struct.Struct("<5Q")
_MAGIC = b"usearch"
_MAJOR = 2
_U64, _U32 = 14, 15
_KINDS = {"float32": ("c", 11), "float16": ("c", 12), "int8": ("c", 23), "binary": ("b", 1)}
"""Number format to usearch's metric (cosine, Hamming) and its number of the scalar type."""
_MOST_LEVELS = 64
"""Highest level of a node. With the default connectivity, a level holds a sixteenth of the nodes of the one below."""
_MOST_NEIGHBORS = 4096
_NODES_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class _Graph:
    """Nodes of a file of which the sizes are known to be right."""

    content: NDArray[np.uint8]
    """The whole file, memory-mapped."""
    levels: NDArray[np.int16]
    """Highest level of each node, (items,)."""
    offsets: NDArray[np.int64]
    """Offset of each node in the file, (items,)."""
    connectivity: int
    base: int
    """Connectivity of the lowest level."""


def validate_usearch_file(path: Path, dim: int, dtype: str, items: int) -> None:
    """Refuse a file that would make usearch read memory that is not the file's.

    Args:
        path: the file.
        dim: numbers of a vector.
        dtype: number format of the vectors, one of `fluxtalk.arrays.BITS_PER_NUMBER`.
        items: number of vectors.

    Raises:
        IndexFileError: sizes, types, levels, neighbors or keys are not those of such an index.
    """
    wrong = _find_wrong(path, dim, dtype, items)
    if wrong:
        raise IndexFileError(f"{path} is not a valid graph of near neighbors ({wrong}); build the index again.")


def _find_wrong(path: Path, dim: int, dtype: str, items: int) -> str:
    """Name what is wrong in a file, in a few words; empty if nothing is."""
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    width = vector_bytes(dim, dtype)
    head_at = _MATRIX.size + items * width
    graph_at = head_at + _HEAD.size
    levels_at = graph_at + _GRAPH.size
    nodes_at = levels_at + 2 * items
    if len(content) < nodes_at:
        return f"it has {len(content):,} bytes, and {items:,} vectors of {dim} numbers need more"
    if _MATRIX.unpack_from(content.data) != (items, width):
        return f"it does not hold {items:,} vectors of {width} bytes"
    magic, major, _, _, metric, scalar, key, slot, present, deleted, dims, multi = _HEAD.unpack_from(
        content.data, head_at
    )
    if (magic, major) != (_MAGIC, _MAJOR):
        return f"its head is not that of usearch {_MAJOR}"
    if (chr(metric), scalar, key, slot, multi) != (*_KINDS[dtype], _U64, _U32, 0):
        return f"its types are not those of an index in {dtype}"
    numbers = 8 * width if dtype == "binary" else dim
    if (present, deleted, dims) != (items, 0, numbers):
        return f"its head speaks of {present:,} vectors of {dims:,} numbers, {deleted:,} of them deleted"
    size, connectivity, base, top, entry = _GRAPH.unpack_from(content.data, graph_at)
    if size != items or entry >= max(items, 1):
        return f"its graph has {size:,} nodes, and begins at node {entry:,}"
    if not 2 <= connectivity <= base <= _MOST_NEIGHBORS:
        return f"its nodes have {connectivity:,} and {base:,} neighbors"
    levels = content[levels_at:nodes_at].view(np.int16)
    if items and not (levels.min() >= 0 and levels.max() == levels[entry] == top <= _MOST_LEVELS):
        return "the levels of its nodes do not fit its head"
    sizes = 14 + 4 * base + (4 + 4 * connectivity) * levels.astype(np.int64)
    offsets = nodes_at + np.cumsum(sizes) - sizes
    if nodes_at + int(sizes.sum()) != len(content):
        return "its size is not the one that its nodes need"
    graph = _Graph(content, levels, offsets, connectivity, base)
    return _wrong_nodes(graph) or _wrong_neighbors(graph)


def _wrong_nodes(graph: _Graph) -> str:
    """Look at every node's key, level and neighbors on the base."""
    items = len(graph.levels)
    node = np.dtype([("key", "<u8"), ("level", "<i2"), ("count", "<u4"), ("slots", "<u4", (graph.base,))])
    seen = np.zeros(items, np.bool_)
    for start in range(0, items, _NODES_AT_ONCE):
        part = slice(start, start + _NODES_AT_ONCE)
        nodes = _records(graph.content, node, graph.offsets[part])
        if (nodes["level"] != graph.levels[part]).any():
            return "a node has another level than the list of levels says"
        if (nodes["key"] >= items).any():
            return "a node has the key of no item"
        seen[nodes["key"]] = True
        if (nodes["count"] > graph.base).any():
            return "a node has more neighbors than it has room for"
        if _used(nodes, graph.base, nodes["slots"] >= items).any():
            return "a node has a neighbor that does not exist"
    return "" if seen.all() else "two nodes have one key"


def _wrong_neighbors(graph: _Graph) -> str:
    """Look at the neighbors on each level above the base, which must be on that level too."""
    items = len(graph.levels)
    record = np.dtype([("count", "<u4"), ("slots", "<u4", (graph.connectivity,))])
    above = np.flatnonzero(graph.levels)
    for level in range(1, _MOST_LEVELS + 1):
        above = above[graph.levels[above] >= level]
        start = 14 + 4 * graph.base + (level - 1) * record.itemsize
        for first in range(0, len(above), _NODES_AT_ONCE):
            nodes = _records(graph.content, record, graph.offsets[above[first : first + _NODES_AT_ONCE]] + start)
            if (nodes["count"] > graph.connectivity).any():
                return "a node has more neighbors than it has room for"
            missing = nodes["slots"] >= items
            if _used(nodes, graph.connectivity, missing).any():
                return "a node has a neighbor that does not exist"
            low = graph.levels[np.where(missing, 0, nodes["slots"])] < level
            if _used(nodes, graph.connectivity, low).any():
                return "a node has a neighbor on a level that it is not on"
    return ""


def _records(content: NDArray[np.uint8], record: np.dtype[np.void], offsets: NDArray[np.int64]) -> Array:
    """Copy one record from each offset, (offsets,)."""
    # A record may begin at any byte: every byte begins one, and they overlap.
    windows = np.ndarray(len(content) - record.itemsize + 1, record, content, strides=(1,))
    return windows[offsets]


def _used(nodes: Array, room: int, slots: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The same marks of slots (nodes, room), without those behind each node's count."""
    if not slots.any():
        return slots
    marked: NDArray[np.bool_] = slots & (np.arange(room) < nodes["count"][:, None])
    return marked
