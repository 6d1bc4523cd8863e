"""Everything that databases share: vectors read from an index, what a collection says of them, and the search."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxtalk.arrays import Array, Floats
from fluxtalk.artifacts.json_files import decode_json
from fluxtalk.config import StrictConfig
from fluxtalk.errors import IndexFileError, UsageError, reason
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.index.nearest_neighbors import NOT_FINITE
from fluxtalk.runtime.index.rerank import candidates_for
from fluxtalk.runtime.index.search import Hit, SearchIndex, embed_queries, require_counts, require_own_modality
from fluxtalk.runtime.vectors import directions
from fluxtalk.tokens import SEARCHED_KINDS, TOKENS, TokenLayout

KEY = "fluxtalk"
"""Name under which a collection or table keeps its `Contents`."""
NUMBERS_AT_ONCE = 1 << 19
ITEMS_AT_ONCE = 1000
FLOATS = ("float32", "float16")


@dataclass(frozen=True)
class Contents(StrictConfig):
    """Description of the vectors that a collection or table holds, kept with them."""

    space_id: str
    """See `Manifest.space_id`."""
    modality: str
    output: str
    """One of `SEARCHED_KINDS`."""
    k: int
    """Register tokens that were computed."""
    dim: int
    """Numbers of a vector, or of one token."""
    num_tokens: int
    """Overlapping tokens of each item; 0 if there is one vector."""
    token_dim: int
    """Numbers to which each token was cut; 0 is none."""
    dtype: str
    """Number format of the index, ``float32`` or ``float16``."""
    items: int
    """Number of items that were pushed."""

    def __post_init__(self) -> None:
        known = self.output in SEARCHED_KINDS and self.dtype in FLOATS
        several = self.num_tokens > 0
        if not known or min(self.k, self.dim) < 1 or several != (self.output == TOKENS):
            raise UsageError(f"It describes no vectors that are searched: {self.to_dict()}.")

    @classmethod
    def of(cls, index: SearchIndex) -> Contents:
        """Describe what an index holds.

        Raises:
            UsageError: its vectors are int8 or binary.
        """
        manifest = index.stored.manifest
        if manifest.dtype not in FLOATS:
            raise UsageError(
                f"A database takes vectors in {' or '.join(FLOATS)}; {index.stored.folder} holds {manifest.dtype}: "
                "build the index again with another --dtype, and let the database quantize them."
            )
        return cls(
            manifest.space_id,
            manifest.modality,
            manifest.output,
            manifest.k,
            manifest.dim,
            index.num_tokens,
            manifest.token_dim,
            manifest.dtype,
            manifest.items,
        )

    def to_json(self) -> str:
        """Write it on one line."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes | None, name: str) -> Contents:
        """Read what `to_json` wrote.

        Args:
            text: what the database keeps; None if it keeps nothing.
            name: the collection or table, for errors.

        Raises:
            IndexFileError: it was not written by `fluxtalk index push`, or not to its end.
        """
        try:
            return cls.from_dict(decode_json((text.decode() if isinstance(text, bytes) else text) or "null"))
        except (ValueError, TypeError, UsageError) as error:
            raise IndexFileError(
                f"{name} does not hold what `fluxtalk index push` writes to its end ({reason(error)}); "
                "delete it and push the index again, or name another."
            ) from None


@dataclass(frozen=True)
class Chunk:
    """Some items of an index, one after the other."""

    rows: range
    """Their numbers in the index."""
    items: Sequence[str]
    """Their names."""
    vectors: Floats
    """The only vector of each, or the first token, of length 1: (count, dim)."""
    tokens: Array
    """Overlapping tokens in the number format of the index, (count, tokens, dim); no tokens if there is one vector."""


def read_chunks(index: SearchIndex) -> Iterator[Chunk]:
    """Read all items of an index, never many at once.

    Raises:
        IndexFileError: it holds numbers that are not finite.
    """
    manifest, stored = index.stored.manifest, index.stored
    tokens = stored.read_tokens() if manifest.output == TOKENS else np.empty((manifest.items, 0, manifest.dim), "f4")
    step = max(1, min(ITEMS_AT_ONCE, NUMBERS_AT_ONCE // (manifest.dim * (1 + tokens.shape[1]))))
    for start in range(0, manifest.items, step):
        rows = range(start, min(start + step, manifest.items))
        part = np.asarray(tokens[start : rows.stop])
        vectors = index.neighbors.vectors(rows)
        if not (np.isfinite(part).all() and np.isfinite(vectors).all()):
            raise IndexFileError(NOT_FINITE)
        yield Chunk(rows, stored.items[start : rows.stop], directions(vectors), part)


class DatabaseSearch(ABC):
    """A search in what `fluxtalk index push` wrote, with the queries and the answers of `SearchIndex`.

    Args:
        contents: what the collection or table says that it holds.
        name: the collection or table, for errors.
    """

    def __init__(self, contents: Contents, name: str) -> None:
        self.contents = contents
        """What it holds."""
        self._name = name

    def search(
        self, queries: Floats, count: int = 10, candidates: int | None = None, space_id: str | None = None
    ) -> list[list[Hit]]:
        """Find the items most similar to each query, best first.

        Args:
            queries: vectors (queries, dim), or overlapping tokens (queries, tokens, dim) of any number of them.
            count: largest number of items per query.
            candidates: number of items that their first token finds and MaxSim puts in order; None is ten for each
                answer, and at least a hundred.
            space_id: space of the queries, as the server's answer says; None if the caller has verified it.

        Raises:
            UsageError: the shape, a number or a count does not fit.
            IndexFileError: the queries are of another space.
            BackendError: the database fails.
        """
        held = self.contents
        if space_id is not None:
            self._require_space(space_id, "the queries")
        queries = np.asarray(queries, np.float32)
        several = held.output == TOKENS
        if queries.ndim != 2 + several or queries.shape[-1] != held.dim or 0 in queries.shape[1:]:
            what = "tokens" if several else "vectors"
            raise UsageError(
                f"{self._name} holds {what} of dimension {held.dim}; got queries of shape {queries.shape}."
            )
        if not np.isfinite(queries).all():
            raise UsageError("A query is a vector of finite numbers; this one has others.")
        require_counts(count, candidates, several, self._name)
        if several:
            return [self._by_tokens(directions(q), count, candidates_for(count, candidates)) for q in queries]
        return [self._by_one_vector(directions(query), count) for query in queries]

    def search_items(
        self,
        embedder: Embedder,
        modality: str,
        items: Sequence[Any],
        count: int = 10,
        k: int | None = None,
        candidates: int | None = None,
    ) -> list[list[Hit]]:
        """Embed raw items as queries, as the items of the database were embedded, and search for each.

        Args:
            embedder: opened from the bundle that built the index, or another of its run.
            modality: of the queries.
            items: as for `Embedder.embed`.
            count: as for `search`.
            k: register tokens of the queries; None is that of the items. Of ``concat`` vectors there is no other.
            candidates: as for `search`.

        Raises:
            IndexFileError: the bundle is of another space.
            TokenCountError: k is out of range.
            UsageError, InputError, BackendError: as for `search` and `Embedder.embed`; or complementary tokens are
                searched from another modality.
        """
        held, manifest = self.contents, embedder.bundle.manifest
        require_own_modality(held.output, held.modality, modality, self._name)
        trained = not held.token_dim or held.token_dim in manifest.nested_dims
        space = manifest.space_id(held.output, held.token_dim) if trained else ""
        self._require_space(space, f"the bundle {embedder.bundle.folder}")
        layout: TokenLayout = manifest.layout.narrowed(held.token_dim) if held.token_dim else manifest.layout
        chosen = layout.select(layout.truncated(held.k).num_register_tokens if k is None else k, held.output)
        return self.search(embed_queries(embedder, modality, items, chosen), count, candidates)

    def _require_space(self, space_id: str, what: str) -> None:
        held = self.contents
        if space_id != held.space_id:
            raise IndexFileError(
                f"{self._name} and {what} do not share a space: it holds {held.output} vectors of another head, or of "
                f"another kind of output ({held.space_id[:12]} and {space_id[:12]}); open the bundle that its index "
                "was built with, or one of the same run, or push the index again."
            )

    @abstractmethod
    def _by_one_vector(self, query: Floats, count: int) -> list[Hit]:
        """Search with a vector (dim,) of length 1."""

    @abstractmethod
    def _by_tokens(self, query: Floats, count: int, candidates: int) -> list[Hit]:
        """Search with tokens (tokens, dim) of length 1: the first finds candidates, MaxSim puts them in order."""


def exists(name: str) -> UsageError:
    """Make the error of a collection or table that is in the way."""
    return UsageError(f"{name} exists; name another, or delete it first.")
