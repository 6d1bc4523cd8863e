"""Search in an index: queries from any modality in, the most similar items out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.arrays import Floats, Integers, vector_bytes
from fluxtalk.artifacts.bundle import Manifest
from fluxtalk.artifacts.index import read_index
from fluxtalk.errors import UsageError
from fluxtalk.preprocess.prompts import QUERY
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.index.limits import NO_LIMITS, Limits, Options, choose
from fluxtalk.runtime.index.nearest_neighbors import NearestNeighbors
from fluxtalk.runtime.index.rerank import Reranker
from fluxtalk.scoring.pair_recall import ServingCurve
from fluxtalk.tokens import (
    COMPLEMENTARY,
    CONCAT,
    POOLED,
    TOKENS,
    Comparison,
    Selection,
    StoredTokens,
    TokenLayout,
    side_by_side,
)


@dataclass(frozen=True)
class Hit:
    """One answer."""

    item: str
    similarity: float
    """Cosine; in an index of tokens the MaxSim score, which is in -1..1 as well."""


def require_counts(count: int, candidates: int | None, has_tokens: bool, what: str) -> None:
    """Refuse numbers of answers and of candidates that make no sense.

    Args:
        has_tokens: True if items have several tokens, which put candidates in order.
        what: the index, for errors.

    Raises:
        UsageError: a number is below 1, or there is nothing that puts candidates in order.
    """
    if count < 1 or (candidates is not None and candidates < 1):
        raise UsageError(f"count and candidates are at least 1; got {count} and {candidates}.")
    if not has_tokens and candidates is not None:
        raise UsageError(f"candidates are put in order by tokens, and {what} has none; leave candidates out.")


def require_own_modality(output: str, own: str, modality: str, what: str) -> None:
    """Refuse a query of another modality, if items are compared by what only theirs knows.

    Args:
        output: kind of vectors that the index holds.
        own: modality of its items.
        modality: of the query.
        what: the index, for errors.

    Raises:
        UsageError: they do not compare.
    """
    if output == COMPLEMENTARY and modality != own:
        begin = what[:1].upper() + what[1:]
        raise UsageError(f"{begin} holds what only {own} knows, so a query is of that modality; got {modality}.")


def embed_queries(embedder: Embedder, modality: str, items: Sequence[Any], chosen: Selection) -> Floats:
    """Embed raw items as queries, in the form in which an index of this kind holds its items.

    Returns:
        (items, dim), or (items, tokens, dim) of overlapping tokens.

    Raises:
        FluxTalkError: as for `Embedder.embed`.
    """
    vectors = embedder.embed(modality, items, chosen.k, chosen.output, role=QUERY, dimensions=chosen.shape[-1])
    if chosen.output == COMPLEMENTARY:
        return side_by_side(vectors)
    return vectors[:, : chosen.shared] if chosen.output == TOKENS else vectors


class SearchIndex:
    """An index opened for search; vectors stay on disk, memory-mapped. Thread-safe.

    Raises:
        IndexFileError: it is missing, foreign, or was changed.
        BackendError: usearch is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.stored = read_index(folder)
        """Manifest, names of the items, and paths of the items and of the bundle."""
        manifest = self.stored.manifest
        self.neighbors = NearestNeighbors.view(
            self.stored.files.vectors, manifest.dim, manifest.dtype, manifest.items, manifest.ef_search
        )
        """The first token, or the only vector, of each item."""
        self._tokens = self.stored.read_tokens() if manifest.output == TOKENS else None
        self._name = f"the index {folder.name}"

    @property
    def num_tokens(self) -> int:
        """Overlapping tokens that an index of tokens holds of each item; 0 of one vector an item."""
        return 0 if self._tokens is None else int(self._tokens.shape[1])

    def stored_tokens(self, layout: TokenLayout) -> StoredTokens:
        """Describe the tokens that it holds of each item.

        Args:
            layout: register tokens of a bundle of its space.
        """
        manifest = self.stored.manifest
        shared = {
            POOLED: min(manifest.k, layout.num_overlapping_tokens),
            CONCAT: manifest.dim // manifest.narrowed(layout).dim,
            TOKENS: self.num_tokens,
            COMPLEMENTARY: manifest.k,
        }
        whole = manifest.output in (POOLED, COMPLEMENTARY) or (manifest.output == CONCAT and manifest.dtype == "binary")
        return StoredTokens(manifest.output, manifest.k, shared[manifest.output], whole)

    def bytes_per_item(self, comparison: Comparison) -> int:
        """Count the bytes of an item's vectors that such a search reads, as they are stored."""
        vector = vector_bytes(self.stored.manifest.dim, self.stored.manifest.dtype)
        if comparison.query.output != TOKENS or comparison.query_tokens == comparison.item_tokens == 1:
            return vector
        # The first token finds candidates; the tokens that put them in order are read from where all are stored.
        return vector * (1 + comparison.item_tokens)

    def nearest(
        self,
        query: Floats,
        comparison: Comparison,
        count: int,
        exact: bool | None = None,
        candidates: int | None = None,
    ) -> tuple[Integers, Floats]:
        """Find the items most similar to one query.

        Args:
            query: vectors as ``comparison.query`` says, of which the compared ones are taken: (dim,), or (tokens, dim).
            comparison: tokens of both sides; of `pooled` in an index of tokens, the first of each item is compared.
            count: largest number of items.
            exact: as for `search`.
            candidates: as for `search`.

        Returns:
            their rows and similarities, best first: cosines, or MaxSim scores.
        """
        if comparison.query.output == COMPLEMENTARY:
            query = side_by_side(query[None])[0]
        if comparison.query.output == TOKENS:
            return self._by_tokens(query[: comparison.query_tokens], count, exact, candidates, comparison.item_tokens)
        return self._by_one_vector(query, count, exact)

    def require_comparable(self, modality: str, limits: Limits) -> None:
        """Refuse what complementary tokens do not compare with: other modalities, and limits, whose curve lacks them.

        Raises:
            UsageError: the index holds such tokens, and the query is of another modality or sets limits.
        """
        manifest = self.stored.manifest
        require_own_modality(manifest.output, manifest.modality, modality, self._name)
        if manifest.output == COMPLEMENTARY and limits.given:
            raise UsageError(
                f"No recall was measured of complementary tokens, which {self._name} holds; "
                f"leave {', '.join(limits.given)} out."
            )

    def compare(
        self,
        embedder: Embedder,
        modality: str,
        k: int | None = None,
        item_k: int | None = None,
        limits: Limits = NO_LIMITS,
    ) -> Comparison:
        """Decide how many tokens of both sides a search of `search_items` compares.

        Args:
            embedder: embeds the queries; its bundle carries the curve from which `limits` choose.
            modality: of the queries.
            k: register tokens of the queries; None is the index's, or what the limits choose.
            item_k: register tokens to read of each item, from the first; None is all that are stored, or what the
                limits choose.
            limits: bounds on recall, bytes and time.

        Raises:
            IndexFileError: the bundle is of another space.
            TokenCountError: k or item_k is out of range.
            UsageError: the two do not compare, nothing is within the limits, or the bundle has no curve.
        """
        self.require_comparable(modality, limits)
        manifest = embedder.bundle.manifest
        stored = self.stored.manifest
        self.require_space_of(manifest, f"the bundle {embedder.bundle.folder}")
        tokens, layout = self.stored_tokens(manifest.layout), stored.narrowed(manifest.layout)
        if limits.given:
            options = Options(tokens, layout, k, item_k, self._name)
            curve = self.curve(manifest, embedder.precision)
            return choose(options, limits, curve, modality, stored.modality, self.bytes_per_item).comparison
        k = layout.truncated(stored.k).num_register_tokens if k is None else k
        return tokens.compare(layout.select(k, stored.output), item_k, self._name)

    def require_space_of(self, manifest: Manifest, what: str) -> None:
        """Refuse a bundle whose vectors do not compare with those of the index.

        Args:
            what: the bundle, for errors.

        Raises:
            IndexFileError: it is of another head or other encoders, or was not trained at the size of its tokens.
        """
        stored = self.stored.manifest
        trained = not stored.token_dim or stored.token_dim in manifest.nested_dims
        space = manifest.space_id(stored.output, stored.token_dim) if trained else ""
        self.stored.require_space(space, what)

    def curve(self, manifest: Manifest, precision: str) -> ServingCurve | None:
        """Take the curve from which limits choose from a bundle's manifest; None if the export measured none.

        Raises:
            UsageError: the tokens of the index were cut, and the export measured whole ones.
        """
        size = self.stored.manifest.token_dim
        if size:
            raise UsageError(
                f"The export measured recall at whole tokens, and {self._name} holds the first {size} numbers of each: "
                "give k and item_k in place of limits."
            )
        return manifest.precisions[precision].serving_curve

    def search(
        self,
        queries: Floats,
        count: int = 10,
        candidates: int | None = None,
        exact: bool | None = None,
        space_id: str | None = None,
        item_tokens: int | None = None,
    ) -> list[list[Hit]]:
        """Find the items most similar to each query, best first.

        Args:
            queries: vectors (queries, dim), or overlapping tokens (queries, tokens, dim), of any modality, k and
                precision.
            count: largest number of items per query.
            candidates: number of items of an index of tokens that MaxSim puts in order; None is ten for each answer,
                and at least a hundred.
            exact: compare with every vector, or follow the graph; None compares with every one up to 20,000.
            space_id: space of the queries, as the server's answer says; None if the caller has verified it.
            item_tokens: overlapping tokens of each item to compare, from the first; None takes all that are stored. In
                an index of ``tokens`` queries may have another number, in one of ``concat`` they have the same.

        Raises:
            UsageError: the shape or a count does not fit.
            IndexFileError: the queries are of another space.
        """
        if space_id is not None:
            self.stored.require_space(space_id, "the queries")
        self._require_shape(queries, item_tokens)
        require_counts(count, candidates, self._tokens is not None, self._name)
        found = []
        for query in queries:
            if self._tokens is None:
                rows, scores = self._by_one_vector(query, count, exact)
            else:
                rows, scores = self._by_tokens(query, count, exact, candidates, item_tokens)
            found.append([Hit(self.stored.items[r], float(s)) for r, s in zip(rows.tolist(), scores, strict=True)])
        return found

    def search_items(
        self,
        embedder: Embedder,
        modality: str,
        items: Sequence[Any],
        count: int = 10,
        k: int | None = None,
        candidates: int | None = None,
        item_k: int | None = None,
        limits: Limits = NO_LIMITS,
    ) -> list[list[Hit]]:
        """Embed raw items as queries, as the index needs them, and search for each; see `search` and `Embedder.embed`.

        `compare` tells beforehand which k the same arguments take.

        Args:
            k: register tokens of the queries; None is the index's.
            item_k: register tokens to read of each item, from the first; None is all that are stored. An index of
                ``concat`` takes the same for both, one of ``pooled`` its own alone.
            limits: bounds on recall, bytes and time, which choose what is not given of k and item_k.

        Raises:
            IndexFileError, TokenCountError, UsageError: as for `compare`.
            UsageError, InputError: as for `Embedder.embed`.
        """
        chosen = self.compare(embedder, modality, k, item_k, limits)
        vectors = embed_queries(embedder, modality, items, chosen.query)
        whole = chosen.query.output in (POOLED, COMPLEMENTARY) or (item_k is None and not limits.given)
        return self.search(vectors, count, candidates, item_tokens=None if whole else chosen.item_tokens)

    def _by_tokens(
        self, query: Floats, count: int, exact: bool | None, candidates: int | None, item_tokens: int | None
    ) -> tuple[Integers, Floats]:
        """Search with tokens (tokens, dim), against the first few of each item."""
        assert self._tokens is not None
        if len(query) == item_tokens == 1 and candidates is None:
            # Finding the candidates is the whole search.
            return self.neighbors.search(query[0], count, exact)
        return Reranker(self.neighbors, self._tokens[:, :item_tokens]).search(query, count, exact, candidates)

    def _by_one_vector(self, query: Floats, count: int, exact: bool | None) -> tuple[Integers, Floats]:
        """Search with a whole vector, or with the first tokens of a ``concat`` one.

        Each token of a stored vector has the same length, so the cosine with a query that is filled up with zeros is
        that of the first tokens, but for a factor.
        """
        dim = self.stored.manifest.dim
        if len(query) == dim:
            return self.neighbors.search(query, count, exact)
        rows, scores = self.neighbors.search(np.pad(query, (0, dim - len(query))), count, exact)
        return rows, scores * np.float32(np.sqrt(dim / len(query)))

    def _require_shape(self, queries: Floats, item_tokens: int | None) -> None:
        """Refuse queries that do not fit.

        Raises:
            UsageError: they have another shape, or the items have not so many tokens.
        """
        manifest = self.stored.manifest
        if manifest.output == POOLED and item_tokens is not None:
            raise UsageError("item_tokens are tokens of an item, and this index holds a pooled vector; leave them out.")
        if self._tokens is not None and not (item_tokens is None or 1 <= item_tokens <= self.num_tokens):
            raise UsageError(f"item_tokens is an integer from 1 to {self.num_tokens}; got {item_tokens}.")
        dim = queries.shape[-1] if queries.ndim else 0
        parts = manifest.output == CONCAT and manifest.dtype != "binary" and item_tokens is not None
        prefix = parts and _is_prefix(dim, item_tokens or 0, manifest.dim)
        fits = queries.ndim == (2 if self._tokens is None else 3) and bool(queries.shape[1])
        if not fits or not (dim == manifest.dim or prefix):
            what = "vectors" if self._tokens is None else "tokens"
            raise UsageError(
                f"This index holds {what} of dimension {manifest.dim}; got queries of shape {queries.shape}."
            )


def _is_prefix(dim: int, tokens: int, stored: int) -> bool:
    """True if vectors of ``dim`` numbers may be the first tokens of stored ones, which have as wide ones."""
    return 1 <= tokens <= dim < stored and dim % tokens == 0 and stored % (dim // tokens) == 0
