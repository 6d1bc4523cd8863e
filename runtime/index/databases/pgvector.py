"""PostgreSQL with pgvector: the first token finds candidates there, MaxSim puts them in order here.

The table has the columns ``row`` (number in the index), ``item`` (its name), ``vector`` (the first token, or the only
vector) and, of an index of tokens, their bytes (``tokens``): pgvector compares single vectors. A comment on the table
says what it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fluxtalk.arrays import Floats
from fluxtalk.errors import BackendError, IndexFileError, reason
from fluxtalk.runtime.index.databases.common import Contents, DatabaseSearch, exists, read_chunks
from fluxtalk.runtime.index.search import Hit, SearchIndex
from fluxtalk.runtime.vectors import maxsim


def connect(url: str) -> Any:
    """Open a connection; each statement outside of a transaction is one.

    Args:
        url: as libpq takes it, such as ``postgresql://host/database``; the password may be in its usual places.

    Raises:
        BackendError: psycopg is not installed, or the server does not answer.
    """
    library = _library()
    with _failures("The database"):
        return library.connect(url, autocommit=True)


def push(index: SearchIndex, connection: Any, table: str) -> Contents:
    """Write an index into a new table, in one transaction.

    Args:
        connection: a `psycopg.Connection`.
        table: its name, ``table`` or ``schema.table``, which must be free.

    Raises:
        UsageError: the table exists, or the index holds int8 or binary vectors.
        IndexFileError: the index holds numbers that are not finite.
        BackendError: the database fails, or has no pgvector.
    """
    contents, sql, name = Contents.of(index), _library().sql, f"The table {table}"
    target = _identifier(table)
    with _failures(name), connection.transaction():
        if not connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
            raise BackendError(f"{name} needs pgvector: run CREATE EXTENSION vector in its database first.")
        if _find(connection, table) is not None:
            raise exists(name)
        columns = "row bigint PRIMARY KEY, item text NOT NULL, vector vector({}) NOT NULL" + ", tokens bytea" * bool(
            contents.num_tokens
        )
        connection.execute(sql.SQL("CREATE TABLE {} (" + columns + ")").format(target, sql.Literal(contents.dim)))
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(target, sql.Literal(contents.to_json())))
        with connection.cursor() as cursor, cursor.copy(sql.SQL("COPY {} FROM STDIN").format(target)) as copy:
            for chunk in read_chunks(index):
                for i, row in enumerate(chunk.rows):
                    tokens = [_bytes(chunk.tokens[i])] * bool(contents.num_tokens)
                    copy.write_row([row, chunk.items[i], _text(chunk.vectors[i]), *tokens])
    return contents


class PgvectorSearch(DatabaseSearch):
    """A search in a table that `push` wrote.

    Args:
        connection: a `psycopg.Connection`; searches of several threads take turns on it.
        table: its name, ``table`` or ``schema.table``.

    Raises:
        IndexFileError: the table is missing, or is not one of ours.
        BackendError: the database fails.
    """

    def __init__(self, connection: Any, table: str) -> None:
        name = f"The table {table}"
        with _failures(name):
            found = _find(connection, table)
            if found is None:
                raise IndexFileError(f"{name} does not exist; write it with `fluxtalk index push`.")
            comment = connection.execute("SELECT obj_description(%s::oid, 'pg_class')", [found]).fetchone()[0]
        super().__init__(Contents.from_json(comment, name), name)
        self._connection, self._table = connection, _identifier(table)

    def _by_one_vector(self, query: Floats, count: int) -> list[Hit]:
        found = self._rows("item, 1 - (vector <=> {})", query, count)
        return [Hit(item, similarity) for item, similarity in found]

    def _by_tokens(self, query: Floats, count: int, candidates: int) -> list[Hit]:
        # In the order of the index, so that equals are in the same order as there.
        found = sorted(self._rows("row, item, tokens", query[0], candidates))
        if not found:
            return []
        held = self.contents
        number = np.dtype(held.dtype).newbyteorder("<")
        tokens = np.stack([np.frombuffer(row[2], number).reshape(held.num_tokens, held.dim) for row in found])
        scores = maxsim(query, tokens)[0]
        return [Hit(found[i][1], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:count].tolist()]

    def _rows(self, columns: str, query: Floats, count: int) -> list[Any]:
        sql = _library().sql
        vector = sql.SQL("{}::vector").format(sql.Literal(_text(query)))
        select = sql.SQL("SELECT " + columns).format(vector)
        order = sql.SQL(" FROM {} ORDER BY vector <=> {} LIMIT {}").format(self._table, vector, sql.Literal(count))
        with _failures(self._name):
            rows: list[Any] = self._connection.execute(select + order, binary=True).fetchall()
        return rows


def _text(vector: Floats) -> str:
    """Spell a vector as pgvector reads it; nine digits keep every float32."""
    return "[" + ",".join(f"{number:.9g}" for number in vector.tolist()) + "]"


def _bytes(tokens: Any) -> bytes:
    return bytes(np.ascontiguousarray(tokens, tokens.dtype.newbyteorder("<")).tobytes())


def _identifier(table: str) -> Any:
    return _library().sql.Identifier(*table.split("."))


def _find(connection: Any, table: str) -> int | None:
    """Find the object number of a table, or None."""
    spelled = _identifier(table).as_string(connection)
    row = connection.execute("SELECT to_regclass(%s)::oid", [spelled]).fetchone()
    return None if row[0] is None else int(row[0])


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turn the library's errors into ours."""
    try:
        yield
    except _library().Error as error:
        raise BackendError(f"{what}: PostgreSQL failed ({reason(error)}).") from error


def _library() -> Any:
    try:
        import psycopg
        import psycopg.sql
    except ImportError:
        raise BackendError("PostgreSQL needs its client: pip install 'fluxtalk[pgvector]'.") from None
    return psycopg
