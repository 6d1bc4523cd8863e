"""LanceDB: the first token finds candidates, a multivector of all tokens puts them in order.

The table has the columns ``row`` (number in the index), ``item`` (its name), ``vector`` (the first token, or the only
vector) and, of an index of tokens, the multivector ``tokens``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fluxtalk.arrays import Array, Floats
from fluxtalk.errors import BackendError, IndexFileError, reason
from fluxtalk.runtime.index.databases.common import KEY, Chunk, Contents, DatabaseSearch, exists, read_chunks
from fluxtalk.runtime.index.search import Hit, SearchIndex


def connect(place: str) -> Any:
    """Open a database in a folder, or at an address that LanceDB takes.

    Raises:
        BackendError: lancedb is not installed, or the database cannot be opened.
    """
    library = _library()
    with _failures(place):
        return library.connect(place)


def push(index: SearchIndex, database: Any, table: str) -> Contents:
    """Write an index into a new table, which is dropped again if that fails.

    Args:
        database: what `lancedb.connect` gives.
        table: its name, which must be free.

    Raises:
        UsageError: the table exists, or the index holds int8 or binary vectors.
        IndexFileError: the index holds numbers that are not finite.
        BackendError: the database fails.
    """
    contents, name = Contents.of(index), f"The table {table}"
    _library()
    import pyarrow as pa

    vector = pa.list_(pa.float32(), contents.dim)
    columns = {"row": pa.int64(), "item": pa.string(), "vector": vector}
    if contents.num_tokens:
        columns["tokens"] = pa.list_(vector)
    schema = pa.schema(list(columns.items()), metadata={KEY: contents.to_json()})
    with _failures(name):
        if _has(database, table):
            raise exists(name)
        # Empty until every row is there: rows are added by one commit.
        created = database.create_table(table, schema=schema)
        try:
            created.add(pa.RecordBatchReader.from_batches(schema, (_batch(c, schema) for c in read_chunks(index))))
            if created.count_rows() != contents.items:
                raise RuntimeError(f"{created.count_rows()} of {contents.items} rows arrived")
        except BaseException:
            database.drop_table(table)
            raise
    return contents


def _batch(chunk: Chunk, schema: Any) -> Any:
    import pyarrow as pa

    count, several, dim = chunk.tokens.shape
    columns = [pa.array(chunk.rows, pa.int64()), pa.array(chunk.items), _vectors(chunk.vectors)]
    if several:
        offsets = np.arange(0, count * several + 1, several, dtype=np.int32)
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), _vectors(chunk.tokens.reshape(-1, dim))))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _vectors(values: Array) -> Any:
    import pyarrow as pa

    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[-1])


class LanceDBSearch(DatabaseSearch):
    """A search in a table that `push` wrote.

    Args:
        database: what `lancedb.connect` gives.
        table: its name.

    Raises:
        IndexFileError: the table is missing, is not one of ours, or was not written to its end.
        BackendError: the database fails.
    """

    def __init__(self, database: Any, table: str) -> None:
        name = f"The table {table}"
        with _failures(name):
            if not _has(database, table):
                raise IndexFileError(f"{name} does not exist; write it with `fluxtalk index push`.")
            self._table = database.open_table(table)
            kept = (self._table.schema.metadata or {}).get(KEY.encode())
            super().__init__(Contents.from_json(kept if self._table.count_rows() else None, name), name)

    def _by_one_vector(self, query: Floats, count: int) -> list[Hit]:
        found = self._rows(query, "vector", count, ["item"])
        return [Hit(row["item"], 1 - row["_distance"]) for row in found]

    def _by_tokens(self, query: Floats, count: int, candidates: int) -> list[Hit]:
        nearest = self._rows(query[0], "vector", candidates, ["row"])
        rows = ", ".join(str(row["row"]) for row in nearest)
        found = self._rows(query, "tokens", count, ["item"], f"row in ({rows})") if rows else []
        # The distance is the sum of those of the query's tokens.
        return [Hit(row["item"], 1 - row["_distance"] / len(query)) for row in found]

    def _rows(
        self, query: Floats, column: str, count: int, wanted: list[str], where: str | None = None
    ) -> list[dict[str, Any]]:
        with _failures(self._name):
            search = self._table.search(query, vector_column_name=column).distance_type("cosine").limit(count)
            if where is not None:
                search = search.where(where, prefilter=True)
            rows: list[dict[str, Any]] = search.select([*wanted, "_distance"]).to_list()
        return rows


def _has(database: Any, table: str) -> bool:
    token = None
    while True:
        answer = database.list_tables(page_token=token)
        if table in answer.tables:
            return True
        token = answer.page_token
        if not token:
            return False


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turn the library's errors into ours."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise BackendError(f"{what}: LanceDB failed ({reason(error)}).") from error


def _library() -> Any:
    try:
        import lancedb
    except ImportError:
        raise BackendError("LanceDB needs its library: pip install 'fluxtalk[lancedb]'.") from None
    return lancedb
