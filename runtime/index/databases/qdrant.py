"""Qdrant: the first token finds candidates, a multivector of all tokens puts them in order, in one request.

The collection has a vector ``vector`` (the first token, or the only vector) and, of an index of tokens, a multivector
``tokens`` compared by MaxSim. Points are numbered as the rows of the index; the payload has the item's name (``item``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fluxtalk.arrays import Floats
from fluxtalk.errors import BackendError, IndexFileError, reason
from fluxtalk.runtime.index.databases.common import KEY, Chunk, Contents, DatabaseSearch, exists, read_chunks
from fluxtalk.runtime.index.nearest_neighbors import EXACT_UP_TO
from fluxtalk.runtime.index.search import Hit, SearchIndex


def connect(url: str | None = None, path: str | None = None) -> Any:
    """Open a client of a server, or of Qdrant's local mode in a folder.

    Raises:
        BackendError: qdrant-client is not installed, or the folder is in use.
    """
    library = _library()
    with _failures(url or str(path)):
        # Asking for the server's version is a thread that raises where nobody hears it.
        return library.QdrantClient(path=path) if path else library.QdrantClient(url=url, check_compatibility=False)


def push(index: SearchIndex, client: Any, collection: str) -> Contents:
    """Write an index into a new collection, which is deleted again if that fails.

    Args:
        client: a `qdrant_client.QdrantClient`.
        collection: its name, which must be free.

    Raises:
        UsageError: the collection exists, or the index holds int8 or binary vectors.
        IndexFileError: the index holds numbers that are not finite.
        BackendError: the server fails, or is older than 1.16, which keeps nothing about a collection.
    """
    contents, models = Contents.of(index), _library().models
    cosine = models.Distance.COSINE
    vectors = {"vector": models.VectorParams(size=contents.dim, distance=cosine)}
    if contents.num_tokens:
        # Read of candidates only: a graph of near neighbors (m) would cost memory and never be used.
        vectors["tokens"] = models.VectorParams(
            size=contents.dim,
            distance=cosine,
            hnsw_config=models.HnswConfigDiff(m=0),
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        )
    name = f"The collection {collection}"
    with _failures(name):
        if client.collection_exists(collection):
            raise exists(name)
        client.create_collection(collection, vectors_config=vectors)
        try:
            for chunk in read_chunks(index):
                client.upsert(collection, points=_points(chunk, models), wait=True)
            # Last of all: what has no contents is not whole.
            client.update_collection(collection, metadata={KEY: contents.to_dict()})
            return _read_contents(client, collection)
        except BaseException:
            client.delete_collection(collection)
            raise


def _points(chunk: Chunk, models: Any) -> list[Any]:
    several = bool(chunk.tokens.shape[1])
    rows = zip(chunk.rows, chunk.items, chunk.vectors.tolist(), chunk.tokens.tolist(), strict=True)
    return [
        models.PointStruct(
            id=row, vector={"vector": vector, **({"tokens": tokens} if several else {})}, payload={"item": item}
        )
        for row, item, vector, tokens in rows
    ]


class QdrantSearch(DatabaseSearch):
    """A search in a collection that `push` wrote.

    Args:
        client: a `qdrant_client.QdrantClient`.
        collection: its name.
        exact: compare with every first token, or follow the graph; None compares with every one up to 20,000.

    Raises:
        IndexFileError: the collection is missing, is not one of ours, or was not written to its end.
        BackendError: the server fails.
    """

    def __init__(self, client: Any, collection: str, exact: bool | None = None) -> None:
        name = f"The collection {collection}"
        with _failures(name):
            if not client.collection_exists(collection):
                raise IndexFileError(f"{name} does not exist; write it with `fluxtalk index push`.")
            contents = _read_contents(client, collection)
        super().__init__(contents, name)
        self._client, self._collection, self._models = client, collection, _library().models
        self._exact = contents.items <= EXACT_UP_TO if exact is None else exact

    def _by_one_vector(self, query: Floats, count: int) -> list[Hit]:
        return self._hits(1, query=query.tolist(), using="vector", limit=count, search_params=self._params())

    def _by_tokens(self, query: Floats, count: int, candidates: int) -> list[Hit]:
        first = self._models.Prefetch(query=query[0].tolist(), using="vector", limit=candidates, params=self._params())
        # The score is the sum over the query's tokens.
        return self._hits(len(query), prefetch=first, query=query.tolist(), using="tokens", limit=count)

    def _params(self) -> Any:
        return self._models.SearchParams(exact=self._exact)

    def _hits(self, divisor: int, **request: Any) -> list[Hit]:
        with _failures(self._name):
            found = self._client.query_points(self._collection, with_payload=["item"], **request)
        return [Hit(str((point.payload or {}).get("item")), point.score / divisor) for point in found.points]


def _read_contents(client: Any, collection: str) -> Contents:
    metadata = client.get_collection(collection).config.metadata or {}
    return Contents.from_json(json.dumps(metadata.get(KEY)), f"The collection {collection}")


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turn the client's errors into ours."""
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except (ApiException, OSError, ValueError, RuntimeError) as error:
        raise BackendError(f"{what}: Qdrant failed ({reason(error)}).") from error


def _library() -> Any:
    try:
        import qdrant_client
    except ImportError:
        raise BackendError("Qdrant needs its client: pip install 'fluxtalk[qdrant]'.") from None
    return qdrant_client
