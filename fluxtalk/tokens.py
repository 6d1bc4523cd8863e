"""Register tokens in numpy, and the one owner of ``k``.

`TokenLayout` says which tokens a head has. `TokenLayout.select` checks ``k`` and ``output`` against it once, and gives
a `Selection`. Every later stage asks that: which k and graph output a session must compute, how a batch's rows are cut
to their own k, and which shape comes out. (The same algebra in torch: `fluxtalk.model.head.pooling`.)

A search has a k for each side. `StoredTokens` says what an index holds of each item; `StoredTokens.compare` checks how
many of those are read against a query's `Selection`, and gives a `Comparison`.

Shapes: B items, K tokens, D dimension.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from fluxtalk.arrays import Floats
from fluxtalk.errors import TokenCountError, UsageError

POOLED, CONCAT, TOKENS, COMPLEMENTARY, ATTENTION = "pooled", "concat", "tokens", "complementary", "attention"
OUTPUT_KINDS = (POOLED, CONCAT, TOKENS, COMPLEMENTARY)
"""Kinds of embeddings; `TokenLayout.select` defines each."""
SHARED_KINDS = (POOLED, CONCAT, TOKENS)
"""Kinds that can be compared between modalities."""
SEARCHED_KINDS = (*SHARED_KINDS, COMPLEMENTARY)
"""Kinds that an index can hold; ``complementary`` is searched from the index's own modality alone."""
MEAN = "mean"
SUMMARIES = (MEAN, CONCAT)
"""Vectors that ``pooled`` may give of an item: the mean of its tokens, or the tokens side by side."""


@dataclass(frozen=True)
class TokenLayout:
    """Register tokens that a head computes."""

    num_register_tokens: int
    """Number of all tokens: the largest ``k``."""
    num_overlapping_tokens: int
    """Number of tokens, from the first, that are shared between modalities; the rest are complementary."""
    dim: int
    """Numbers in one token."""
    attention: bool = False
    """True if the head gives its attention too."""
    summary: str = MEAN
    """One vector of an item, one of `SUMMARIES`: what ``pooled`` gives, as the head was trained to compare items."""
    nested_dims: tuple[int, ...] = ()
    """Sizes below `dim`, rising, to which a token may be cut: its first numbers alone were trained too."""

    def kind(self, output: str) -> str:
        """Kind of vectors that an output gives: ``pooled`` is another name of ``concat`` if that is the summary."""
        return CONCAT if output == POOLED and self.summary == CONCAT else output

    def select(
        self,
        k: Any = None,
        output: str = POOLED,
        dimensions: Any = None,
        *,
        what: str = "this bundle",
        k_name: str = "k",
        dimensions_name: str = "dimensions",
    ) -> Selection:
        """Check ``k``, ``output`` and ``dimensions``.

        Args:
            k: register tokens to compute, from the first; None takes all.
            output: kind and shape of each item's vectors. ``pooled``: the normalized mean over the overlapping tokens
                among the first k, (dim,), or ``concat`` if that is the `summary`; ``concat``: those tokens side by
                side, of length 1, (min(k, overlapping) * dim,);
                ``tokens``: the first k as they are, (k, dim); ``complementary``: the tokens that only one modality
                knows, (N - overlapping, dim), for k = N only; ``attention``: the weights of the first k over the
                features, (k, length), if the head gives them.
            dimensions: numbers of a vector, one of `dimensions`; None cuts nothing. It may choose k, if that is None.
            what: owner of the tokens, for errors.
            k_name: caller's name of ``k``, for errors.
            dimensions_name: caller's name of ``dimensions``, for errors.

        Raises:
            TokenCountError: ``k`` is not an integer in ``1..num_register_tokens``.
            UsageError: ``output`` is unknown, or this head does not have it, or not with so few tokens; or vectors of
                that size were not trained.
        """
        if not isinstance(output, str) or output not in (*OUTPUT_KINDS, *[ATTENTION] * self.attention):
            shown = repr(output[:80]) if isinstance(output, str) else type(output).__name__
            raise UsageError(f"output is one of {', '.join(OUTPUT_KINDS)}; got {shown}.")
        total = self.num_register_tokens
        count = check_token_count(k, total, what, k_name)
        if output == COMPLEMENTARY:
            if self.num_overlapping_tokens == total:
                begin = what[:1].upper() + what[1:]
                raise UsageError(f"{begin} has no complementary tokens: all of its tokens are overlapping.")
            if count != total:
                raise UsageError(
                    f"complementary tokens come last, so they need all {total} tokens; leave {k_name} out."
                )
        if dimensions is None:
            return Selection(self, count, self.kind(output))
        known = self.dimensions(output, None if k is None else count)
        size = _integer(dimensions)
        if size not in known:
            sizes = sorted(known)
            at = f" at {k_name} = {count}" if k is not None and self.kind(output) == CONCAT else ""
            many = len(sizes) > 1
            raise UsageError(
                f"{dimensions_name} is {'one of ' * many}{', '.join(map(str, sizes))} for this output{at}, the only "
                f"size{'s that were' if many else ' that was'} trained; got {_shown(dimensions)}."
            )
        count, dim = known[size]
        return Selection(self.narrowed(dim), count, self.kind(output))

    def dimensions(self, output: str, k: int | None = None) -> dict[int, tuple[int, int]]:
        """Map each size of a vector that was trained to the k, and the numbers of each token, that give it.

        Args:
            output: kind of vectors that this head has.
            k: register tokens; None takes any number of them for ``concat``, the fewest that give a size.
        """
        kind = self.kind(output)
        sizes = (*self.nested_dims, self.dim) if kind in SHARED_KINDS else (self.dim,)
        if kind != CONCAT:
            return {size: (self.num_register_tokens if k is None else k, size) for size in sizes}
        most = self.num_overlapping_tokens
        counts = range(1, most + 1) if k is None else (k,)
        return {min(count, most) * size: (count, size) for size in sizes for count in counts}

    def narrowed(self, dim: int) -> TokenLayout:
        """Give the layout of tokens that are cut to their first ``dim`` numbers."""
        return replace(self, dim=dim, nested_dims=tuple(size for size in self.nested_dims if size < dim))

    def truncated(self, count: int) -> TokenLayout:
        """Give the layout of the first ``count`` tokens, or of all if there are no more."""
        kept = min(count, self.num_register_tokens)
        return replace(self, num_register_tokens=kept, num_overlapping_tokens=min(kept, self.num_overlapping_tokens))

    def selections(self, output: str) -> list[Selection]:
        """List every selection of one kind of output, by rising k; empty if the head does not have it."""
        if output == COMPLEMENTARY:
            complementary = self.num_overlapping_tokens < self.num_register_tokens
            return [Selection(self, self.num_register_tokens, output)] if complementary else []
        return [Selection(self, k, self.kind(output)) for k in range(1, self.num_register_tokens + 1)]


@dataclass(frozen=True)
class Selection:
    """First ``k`` register tokens as one kind of output; made by `TokenLayout.select`."""

    layout: TokenLayout
    k: int
    """Register tokens to compute, from the first."""
    output: str
    """One of `OUTPUT_KINDS`, or ``attention``; never ``pooled`` if the summary is ``concat``."""

    @property
    def graph_output(self) -> str:
        """Output of the graph from which this one is computed: ``embeddings``, ``tokens`` or ``attention``."""
        return {POOLED: "embeddings", ATTENTION: "attention"}.get(self.output, "tokens")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item's vectors, as `TokenLayout.select` says; of attention, without the length."""
        layout = self.layout
        shapes: dict[str, tuple[int, ...]] = {
            POOLED: (layout.dim,),
            CONCAT: (self.shared * layout.dim,),
            TOKENS: (self.k, layout.dim),
            COMPLEMENTARY: (layout.num_register_tokens - layout.num_overlapping_tokens, layout.dim),
            ATTENTION: (self.k,),
        }
        return shapes[self.output]

    @property
    def shared(self) -> int:
        """Number of overlapping tokens among the k."""
        return min(self.k, self.layout.num_overlapping_tokens)

    @property
    def values_per_item(self) -> int:
        """Numbers in one item's vectors."""
        return int(np.prod(self.shape))

    def cut(self, values: Floats) -> Floats:
        """Cut a batch of the graph's output, computed with at least ``k`` tokens, to this selection.

        Args:
            values: `graph_output` of the graph, (B, K, ...) with K >= k; tokens and embeddings may be wider.

        Returns:
            (B, *shape); of attention (B, k, length).
        """
        if self.output != ATTENTION and values.shape[-1] > self.layout.dim:
            values = values[..., : self.layout.dim]
            values = l2_normalize(values) if self.output == POOLED else values
        if self.output == POOLED:
            return values[:, self.k - 1]
        if self.output == CONCAT:
            return concatenate(values[:, : self.k], self.layout.num_overlapping_tokens)
        if self.output == COMPLEMENTARY:
            return values[:, self.layout.num_overlapping_tokens :]
        return values[:, : self.k]

    def empty(self) -> Floats:
        """Vectors of no items, (0, *shape)."""
        return np.empty((0, *self.shape), np.float32)


@dataclass(frozen=True)
class Comparison:
    """Register tokens that a search compares, of the query and of each item; made by `StoredTokens.compare`."""

    query: Selection
    """Tokens of the query, and the output as which it is embedded."""
    item_k: int
    """Register tokens of each item that are read, from the first."""
    query_tokens: int
    """Overlapping tokens among the query's."""
    item_tokens: int
    """Overlapping tokens among those of the item."""

    def equal(self) -> Comparison:
        """Cut both sides to the same number of tokens, the smaller of the two."""
        tokens = min(self.query_tokens, self.item_tokens)
        return replace(self, query_tokens=tokens, item_tokens=tokens)


@dataclass(frozen=True)
class StoredTokens:
    """Register tokens that an index holds of each item, of which a search may read the first few."""

    output: str
    """Kind of vectors, one of `SEARCHED_KINDS`."""
    k: int
    """Register tokens that were computed."""
    shared: int
    """Overlapping tokens among them; of ``complementary``, which is read whole, all of them."""
    whole: bool = False
    """True if an item's vector can only be read as it was stored: a mean, or bits that are compared all together."""

    def compare(self, query: Selection, item_k: SupportsIndex | None = None, what: str = "this index") -> Comparison:
        """Check the k of both sides of a search.

        ``tokens`` compare at any two k. A ``pooled`` vector compares with a query of any k, but only as it was stored.
        ``concat`` vectors compare at equal length: the first tokens of both sides.

        Args:
            query: tokens of the query, as the same kind of output.
            item_k: register tokens to read of each item, from the first; None takes all that are stored.
            what: the index, for errors.

        Raises:
            TokenCountError: ``item_k`` is not an integer in ``1..k``.
            UsageError: the two do not compare.
        """
        count = check_token_count(item_k, self.k, what, "item_k")
        tokens = min(count, self.shared)
        if self.whole and tokens != self.shared:
            raise UsageError(
                f"{what[:1].upper()}{what[1:]} holds one vector of each item ({self.output}) that can only be read as "
                f"it was stored, at k = {self.k}; leave item_k out, or search an index of tokens. Got {count}."
            )
        if self.output == CONCAT and tokens != query.shared:
            raise UsageError(
                f"concat vectors compare at equal dimension: k = {query.k} gives {query.shared} tokens of the query "
                f"side by side, and item_k = {count} gives {tokens} of each item; give k and item_k one number, from 1 "
                f"to {self.k}."
            )
        return Comparison(query, count, query.shared, tokens)


def check_token_count(k: SupportsIndex | None, available: int, what: str, name: str = "k") -> int:
    """Return ``k`` as Python's integer, or ``available`` if ``k`` is None.

    Args:
        k: register tokens, from the first.
        available: register tokens that there are.
        what: owner of the tokens, for the error.
        name: caller's name of ``k``, for the error.

    Raises:
        TokenCountError: ``k`` is not an integer (Python's or numpy's) in ``1..available``.
    """
    if k is None:
        return available
    count = _integer(k)
    if not 1 <= count <= available:
        raise TokenCountError(
            f"{name} must be an integer from 1 to {available}, the register tokens of {what}; got {_shown(k)}."
        )
    return count


def _integer(value: Any) -> int:
    """Return an integer, Python's or numpy's, as Python's; 0 for what is none."""
    try:
        return 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return 0


def _shown(k: object) -> str:
    """Spell a value for an error, short whatever it is."""
    huge = isinstance(k, int) and abs(k) >= 1 << 63
    return "a number of many digits" if huge else repr(k)[:80]


def l2_normalize(x: NDArray[np.floating]) -> Floats:
    """Divide the last dimension by its L2 norm, in float32; a zero vector stays zero."""
    x = x.astype(np.float32, copy=False)
    norm = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    unit: Floats = (x / np.maximum(norm, 1e-12)).astype(np.float32, copy=False)
    return unit


def pool(tokens_BKD: Floats, num_overlapping: int, k: int | None = None) -> Floats:
    """Pool each item: the L2-normalized mean over the overlapping tokens among the first ``k``, (B, D)."""
    count = check_token_count(k, tokens_BKD.shape[1], "these embeddings")
    return l2_normalize(tokens_BKD[:, : min(count, num_overlapping)].mean(axis=1))


def concatenate(tokens_BKD: Floats, num_overlapping: int, k: int | None = None) -> Floats:
    """Put the overlapping tokens among the first ``k`` side by side, each normalized, and scale to length 1.

    Returns:
        (B, min(k, num_overlapping) * D).
    """
    count = check_token_count(k, tokens_BKD.shape[1], "these embeddings")
    chosen = l2_normalize(tokens_BKD[:, : min(count, num_overlapping)])
    return l2_normalize(chosen.reshape(len(chosen), -1))


def side_by_side(tokens_BKD: Floats) -> Floats:
    """Put all tokens of an item side by side, each normalized, and scale to length 1: (B, K * D)."""
    return concatenate(tokens_BKD, tokens_BKD.shape[1])


def maxsim(queries_QKD: Floats, items_BKD: Floats) -> Floats:
    """Score items by late interaction (Khattab and Zaharia 2020, "ColBERT"): (Q, B).

    Each query token takes its most similar item token. The score is the mean over the query's tokens, so it is in -1..1
    for every k. Give overlapping tokens only: complementary ones cannot be compared between modalities.
    """
    queries, items = l2_normalize(queries_QKD), l2_normalize(items_BKD)
    scores = np.einsum("qkd,bjd->qbkj", queries, items, optimize=True)
    return np.asarray(scores.max(axis=-1).mean(axis=-1), dtype=np.float32)


def similarity(queries: Floats, items: Floats) -> Floats:
    """Compare embeddings of one kind: (Q, B) cosines of single vectors, or `maxsim` of tokens.

    Args:
        queries: (Q, D), or (Q, K, D); a single vector, (D,), is a list of one.
        items: (B, D), or (B, J, D), likewise.

    Raises:
        UsageError: one side has single vectors and the other tokens, or the dimensions differ.
    """
    a, b = (np.atleast_2d(np.asarray(side)) for side in (queries, items))
    if a.ndim != b.ndim or a.ndim > 3 or a.shape[-1] != b.shape[-1]:
        raise UsageError(
            "Vectors (items, dim) compare with such, and tokens (items, tokens, dim) with such, of one dim; "
            f"got shapes {a.shape} and {b.shape}."
        )
    return maxsim(a, b) if a.ndim == 3 else l2_normalize(a) @ l2_normalize(b).T
