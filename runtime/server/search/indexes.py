"""Indexes of a server: opened once, checked against its bundle, searched at any k."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fluxtalk.arrays import Floats, vector_bytes
from fluxtalk.errors import UsageError
from fluxtalk.runtime.index.search import SearchIndex
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import ApiError, bad_request
from fluxtalk.tokens import CONCAT, POOLED, TOKENS, Selection

RERANK = "rerank"
"""Ways to search. ``pooled`` compares one vector of the query with one of each item, in an index of tokens its first.
``rerank`` takes candidates from that, and orders them by MaxSim over the first k tokens of both sides."""


class ServedIndex:
    """One index. Thread-safe.

    Args:
        name: name under which requests ask for it.
        folder: folder of the index.
        model: the bundle that embeds the queries.

    Raises:
        IndexFileError: it is missing, was changed, or is of another space than the bundle.
        BackendError: usearch is not installed.
    """

    def __init__(self, name: str, folder: Path, model: ServedModel) -> None:
        opened = SearchIndex(folder)
        self.name = name
        self.manifest = opened.stored.manifest
        opened.stored.require_space(model.manifest.space_id(self.manifest.output), f"the bundle {model.name}")
        self.kind = model.kinds.get(self.manifest.modality, "")
        """Kind of its items, as in `ServedModel.kinds`."""
        self.items = opened.stored.items
        self.item_path = opened.stored.item_path
        """Finds the file of an item by its row."""
        self._neighbors = opened.neighbors
        self._layout = model.layout
        self._rerankers = opened.rerankers
        """Searches over the first 1, 2, ... tokens of each item."""

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways in which it can be searched; the first is the default."""
        return (RERANK, POOLED) if self._rerankers else (POOLED,)

    @property
    def default_k(self) -> int:
        """Register tokens of a query that names no k."""
        return self.manifest.k

    def output(self, how: str) -> str:
        """Output as which a query has to be embedded."""
        if how == RERANK:
            return TOKENS
        return CONCAT if self.manifest.output == CONCAT else POOLED

    def require_k(self, k: int) -> None:
        """Refuse a k at which the query would not fit.

        Raises:
            ApiError: 400.
        """
        fits, given = (Selection(self._layout, count, CONCAT).shared for count in (self.manifest.k, k))
        if self.manifest.output == CONCAT and given != fits:
            raise bad_request(f"The index {self.name} holds {fits} tokens side by side, so k is {fits}; got {k}.", "k")

    def tokens_compared(self, how: str, k: int) -> int:
        """Count the tokens of an item that a search at this k compares; complementary ones never are."""
        return min(k, len(self._rerankers)) if how == RERANK else 1

    def bytes_per_item(self, how: str, k: int) -> int:
        """Count the bytes of an item's vectors that such a search reads, as they are stored."""
        vector = vector_bytes(self.manifest.dim, self.manifest.dtype)
        tokens = self.tokens_compared(how, k)
        # The first token alone finds candidates; more of them are read from where all tokens are stored.
        return vector if tokens == 1 else vector * (1 + tokens)

    def search(self, query: Floats, how: str, k: int, count: int) -> tuple[list[int], Floats]:
        """Find the items most similar to one query.

        Args:
            query: vectors as `output` says: (dim,), or (tokens, dim) with at least the tokens compared.
            count: number of items at most.

        Returns:
            their rows and similarities, best first: cosines, or MaxSim scores.
        """
        tokens = self.tokens_compared(how, k)
        if how == RERANK and tokens > 1:
            rows, scores = self._rerankers[tokens - 1].search(query[:tokens], count)
        else:
            rows, scores = self._neighbors.search(query[0] if how == RERANK else query, count)
        return rows.tolist(), scores


def index_name(folder: Path) -> str:
    """Name an index after its folder, without ``.index``."""
    return folder.resolve().name.removesuffix(".index")


class Indexes:
    """Indexes of a server.

    Args:
        folders: folder of each index, which gives it its name.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self.by_name: dict[str, ServedIndex] = {}
        """Empty until `open`."""

    def open(self, model: ServedModel) -> None:
        """Open every index.

        Raises:
            UsageError: two have one name.
            IndexFileError, BackendError: see `ServedIndex`.
        """
        for folder in self._folders:
            name = index_name(folder)
            if name in self.by_name:
                raise UsageError(f"Two indexes are called {name!r}: rename the folder of one of them.")
            self.by_name[name] = ServedIndex(name, folder, model)

    def require(self, name: str | None) -> ServedIndex:
        """Find an index by name; None if there is one only.

        Raises:
            ApiError: 400 or 404.
        """
        if not self.by_name:
            raise ApiError(404, "This server has no index; start it with --index DIR.", "index_not_found", "index")
        known = ", ".join(self.by_name)
        if name is None:
            if len(self.by_name) == 1:
                return next(iter(self.by_name.values()))
            raise bad_request(f"Name the index: one of {known}.", "index", "missing")
        if name not in self.by_name:
            sentence = f"The index {name[:80]!r} is not served here; there is {known}."
            raise ApiError(404, sentence, "index_not_found", "index")
        return self.by_name[name]
