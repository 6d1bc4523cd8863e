"""Indexes of a server: opened once, checked against its bundle, searched at any k of the query and of the items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fluxtalk.arrays import Floats
from fluxtalk.errors import TokenCountError, UsageError
from fluxtalk.runtime.index.limits import Choice, Limits, Options, choose
from fluxtalk.runtime.index.search import SearchIndex
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import ApiError, bad_request
from fluxtalk.tokens import CONCAT, POOLED, TOKENS, Comparison, StoredTokens

RERANK = "rerank"
"""Ways to search. ``pooled`` compares one vector of the query with one of each item, in an index of tokens its first.
``rerank`` takes candidates from that, and orders them by MaxSim over the first k tokens of the query and the first
item_k of each item."""


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
        opened.require_space_of(model.manifest, f"the bundle {model.name}")
        self.kind = model.kinds.get(self.manifest.modality, "")
        """Kind of its items, as in `ServedModel.kinds`."""
        self.items = opened.stored.items
        self.item_below = opened.stored.item_below
        """Finds the file of an item by its row, below one of some folders."""
        self._opened = opened
        self._model = model
        self._layout = self.manifest.narrowed(model.layout)

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways in which it can be searched; the first is the default."""
        return (RERANK, POOLED) if self.manifest.output == TOKENS else (POOLED,)

    def compare(
        self, how: str, modality: str, k: int | None, item_k: int | None, limits: Limits
    ) -> tuple[Comparison, Choice | None]:
        """Decide how many tokens of both sides a search compares.

        Args:
            how: one of `ways`.
            modality: of the query.
            k: register tokens of the query; None is the index's, or what the limits choose.
            item_k: register tokens to read of each item, from the first; None is as many as the query's if tokens are
                compared, all that are stored else, or what the limits choose.
            limits: bounds on recall, bytes and time.

        Returns:
            the tokens, and what the curve says of them if limits chose.

        Raises:
            ApiError: 400, with the field at fault.
        """
        try:
            self._opened.require_comparable(modality, limits)
        except UsageError as error:
            raise bad_request(str(error), (*limits.given, modality)[0]) from None
        model, stored, what = self._model, self._stored(how), f"the index {self.name}"
        if k is None and not limits.given:
            most = stored.k if stored.output == CONCAT else self.manifest.k
            k = self._layout.truncated(most).num_register_tokens
        query = None if k is None else replace(model.select(k, stored.output), layout=self._layout)
        try:
            if query is None or limits.given:
                options = Options(stored, self._layout, k, item_k, what)
                curve = self._opened.curve(model.manifest, model.precision)
                choice = choose(options, limits, curve, modality, self.manifest.modality, self.bytes_per_item)
                return choice.comparison, choice
            if item_k is None and how == RERANK:
                return stored.compare(query, min(query.k, stored.k), what).equal(), None
            return stored.compare(query, item_k, what), None
        except TokenCountError as error:
            raise bad_request(str(error), "item_k") from None
        except UsageError as error:
            raise bad_request(str(error), (*limits.given, *["item_k"] * (item_k is not None), "k")[0]) from None

    def bytes_per_item(self, comparison: Comparison) -> int:
        """Count the bytes of an item's vectors that such a search reads, as they are stored."""
        return self._opened.bytes_per_item(comparison)

    def search(self, query: Floats, comparison: Comparison, count: int) -> tuple[list[int], Floats]:
        """Find the items most similar to one query.

        Args:
            query: vectors as ``comparison.query`` says: (dim,), or (tokens, dim).
            count: number of items at most.

        Returns:
            their rows and similarities, best first: cosines, or MaxSim scores.
        """
        rows, scores = self._opened.nearest(query, comparison, count)
        return rows.tolist(), scores

    def _stored(self, how: str) -> StoredTokens:
        """Describe the tokens of an item that such a search may read."""
        if how == POOLED and self.manifest.output == TOKENS:
            # In an index of tokens, one vector is the first.
            return StoredTokens(self._model.layout.kind(POOLED), 1, 1, whole=True)
        return self._opened.stored_tokens(self._model.layout)


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
