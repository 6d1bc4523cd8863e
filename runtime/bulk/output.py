"""Files of vectors: ``.npy`` and Parquet, written part by part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from fluxtalk.artifacts.storage import StoredPath, written_file
from fluxtalk.errors import BackendError, UsageError
from fluxtalk.runtime.vectors import Vectors

Chunks = Iterator[tuple[list[str], Vectors]]
"""Ids and vectors of a part of the items."""


def check_output(output: StoredPath) -> None:
    """Refuse an output that could not be written, before anything is computed.

    Raises:
        UsageError: its suffix is neither ``.npy`` nor ``.parquet``.
        BackendError: Parquet needs pyarrow, which is not installed.
    """
    if output.suffix not in (".npy", ".parquet"):
        raise UsageError(f"Vectors are written as .npy or .parquet; got --output {output}.")
    if output.suffix == ".parquet":
        _pyarrow()


def write_output(output: StoredPath, chunks: Chunks, count: int) -> tuple[int, ...]:
    """Write all vectors, atomically and in the memory of one chunk.

    Args:
        output: ``.npy``: an array (count, ...). ``.parquet``: columns ``id`` and ``vector``, a list of a vector's
            numbers (of tokens: a list of lists); one row group for each chunk.
        chunks: at least one.
        count: number of all vectors.

    Returns:
        Shape of all vectors.
    """
    with written_file(output) as file:
        return (_write_npy if output.suffix == ".npy" else _write_parquet)(file, chunks, count)


def _write_npy(file: IO[bytes], chunks: Chunks, count: int) -> tuple[int, ...]:
    shape: tuple[int, ...] = ()
    for _, vectors in chunks:
        if not shape:
            shape = (count, *vectors.shape[1:])
            header = {"descr": vectors.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(vectors).data)
    return shape


def _write_parquet(file: IO[bytes], chunks: Chunks, count: int) -> tuple[int, ...]:
    pyarrow = _pyarrow()
    shape: tuple[int, ...] = ()
    writer: Any = None
    try:
        for ids, vectors in chunks:
            shape = (count, *vectors.shape[1:])
            column = pyarrow.array(vectors.reshape(-1))
            for size in reversed(vectors.shape[1:]):
                column = pyarrow.FixedSizeListArray.from_arrays(column, size)
            table = pyarrow.table({"id": pyarrow.array(ids, pyarrow.string()), "vector": column})
            writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
            writer.write_table(table, row_group_size=len(ids))
    finally:
        if writer is not None:
            writer.close()
    return shape


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BackendError("Parquet needs pyarrow: pip install 'fluxtalk[data]', or write .npy.") from None
    return pyarrow
