"""Search in an index: queries from any modality in, the most similar items out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.arrays import Array, Floats
from fluxtalk.artifacts.index import read_index
from fluxtalk.errors import UsageError
from fluxtalk.preprocess.prompts import QUERY
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.index.nearest_neighbors import NearestNeighbors
from fluxtalk.runtime.index.rerank import Reranker
from fluxtalk.tokens import TOKENS


@dataclass(frozen=True)
class Hit:
    """One answer."""

    item: str
    similarity: float
    """Cosine; in an index of tokens the MaxSim score, which is in -1..1 as well."""


class SearchIndex:
    """An index opened for search; vectors stay on disk, memory-mapped. Thread-safe.

    Raises:
        IndexFileError: it is missing, foreign, or was changed.
        BackendError: usearch is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.stored = read_index(folder)
        """Manifest, names of the items, and paths of the items and of the bundle."""
        self.neighbors = NearestNeighbors.view(self.stored.files.vectors, self.stored.manifest.dtype)
        """The first token, or the only vector, of each item."""
        self._tokens = self.stored.read_tokens() if self.stored.manifest.output == TOKENS else None
        self._reranker = None if self._tokens is None else Reranker(self.neighbors, self._tokens)

    @property
    def rerankers(self) -> list[Reranker]:
        """One for each number of tokens that can be compared, from 1; empty if the index has no tokens."""
        tokens: Array | None = self._tokens
        return [] if tokens is None else [Reranker(self.neighbors, tokens[:, : t + 1]) for t in range(tokens.shape[1])]

    def search(
        self,
        queries: Floats,
        count: int = 10,
        candidates: int | None = None,
        exact: bool | None = None,
        space_id: str | None = None,
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

        Raises:
            UsageError: the shape or a count does not fit.
            IndexFileError: the queries are of another space.
        """
        if space_id is not None:
            self.stored.require_space(space_id, "the queries")
        reranker, dim = self._reranker, self.stored.manifest.dim
        if queries.ndim != (2 if reranker is None else 3) or queries.shape[-1] != dim or not queries.shape[1]:
            what = "vectors" if reranker is None else "tokens"
            raise UsageError(f"This index holds {what} of dimension {dim}; got queries of shape {queries.shape}.")
        if count < 1 or (candidates is not None and candidates < 1):
            raise UsageError(f"count and candidates are at least 1; got {count} and {candidates}.")
        if reranker is None and candidates is not None:
            raise UsageError("candidates are put in order by tokens, and this index has none; leave candidates out.")
        found = []
        for query in queries:
            if reranker is None:
                rows, scores = self.neighbors.search(query, count, exact)
            else:
                rows, scores = reranker.search(query, count, exact, candidates)
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
    ) -> list[list[Hit]]:
        """Embed raw items as queries, as the index needs them, and search for each; see `search` and `Embedder.embed`.

        Args:
            k: register tokens of the queries; None is the index's, the only one that an index of ``concat`` takes.

        Raises:
            IndexFileError: the bundle is of another space.
            UsageError, InputError, TokenCountError: as for `Embedder.embed`.
        """
        manifest = embedder.bundle.manifest
        output = self.stored.manifest.output
        self.stored.require_space(manifest.space_id(output), f"the bundle {embedder.bundle.folder}")
        k = manifest.layout.truncated(self.stored.manifest.k).num_register_tokens if k is None else k
        selection = manifest.layout.select(k, output)
        vectors = embedder.embed(modality, items, selection.k, output, role=QUERY)
        if output == TOKENS:
            vectors = vectors[:, : selection.shared]
        return self.search(vectors, count, candidates)
