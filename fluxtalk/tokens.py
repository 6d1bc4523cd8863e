"""Register tokens in numpy, and the one owner of ``k``: what a request for k tokens computes, and what it gets.

`TokenLayout` says which tokens a head has. `TokenLayout.select` checks ``k`` and ``output`` against it once, and gives
a `Selection`, which every later stage asks: what a session has to compute, how a batch's rows are cut to their own k,
and which shape comes out. (Torch twin of the algebra: `fluxtalk.model.head.pooling`.)

Shapes: B items, K tokens, D dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.arrays import Floats
from fluxtalk.errors import UsageError, check_token_count

POOLED, CONCAT, TOKENS, COMPLEMENTARY, ATTENTION = "pooled", "concat", "tokens", "complementary", "attention"
OUTPUT_KINDS = (POOLED, CONCAT, TOKENS, COMPLEMENTARY)
"""What an embedding can be; `TokenLayout.select` defines each."""
SHARED_KINDS = (POOLED, CONCAT, TOKENS)
"""Those that compare between modalities, and can be searched."""


@dataclass(frozen=True)
class TokenLayout:
    """Which register tokens a head computes."""

    num_register_tokens: int
    """All of them: the largest ``k``."""
    num_overlapping_tokens: int
    """How many, from the first, are shared between modalities; the rest are complementary."""
    dim: int
    """Integers of one token."""
    attention: bool = False
    """Whether attention can be asked for."""

    def select(self, k: Any = None, output: str = POOLED, *, what: str = "this bundle", k_name: str = "k") -> Selection:
        """Check what is asked for.

        Args:
            k: register tokens to compute, from the first; None takes all.
            output: ``pooled``: the normalized mean over the overlapping tokens among the first k, (dim,) of each item;
                ``concat``: those tokens side by side, (min(k, overlapping) * dim,); ``tokens``: the first k as they
                are, (k, dim); ``complementary``: what only one modality knows, (N - overlapping, dim), which takes no
                k below N; ``attention``: where the first k looked, (k, length), if the head tells.
            what: whose tokens they are, as an error names it.
            k_name: how the caller spells ``k``, as an error names it.

        Raises:
            TokenCountError: ``k`` is not an integer in ``1..num_register_tokens``.
            UsageError: ``output`` is unknown, or this head does not have it, or not with so few tokens.
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
        return Selection(self, count, output)

    def selections(self, output: str) -> list[Selection]:
        """Every selection of one kind of output, by rising k; empty if the head does not have it."""
        if output == COMPLEMENTARY:
            complementary = self.num_overlapping_tokens < self.num_register_tokens
            return [Selection(self, self.num_register_tokens, output)] if complementary else []
        return [Selection(self, k, output) for k in range(1, self.num_register_tokens + 1)]


@dataclass(frozen=True)
class Selection:
    """The first ``k`` register tokens as one kind of output; made by `TokenLayout.select`."""

    layout: TokenLayout
    k: int
    """Register tokens to compute, from the first."""
    output: str
    """One of `OUTPUT_KINDS`, or ``attention``."""

    @property
    def graph_output(self) -> str:
        """The output of the graph that this one is made of: ``embeddings``, ``tokens`` or ``attention``."""
        return {POOLED: "embeddings", ATTENTION: "attention"}.get(self.output, "tokens")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one item's vectors; of attention, without the length.

        ``complementary`` is (N - overlapping, dim), the others as `TokenLayout.select` says.
        """
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
        """How many of the k tokens are overlapping."""
        return min(self.k, self.layout.num_overlapping_tokens)

    @property
    def values_per_item(self) -> int:
        """Integers of one item's vectors."""
        return int(np.prod(self.shape))

    def cut(self, values: Floats) -> Floats:
        """Cut a batch of the graph's output, computed with at least ``k`` tokens, to this selection.

        Args:
            values: `graph_output` of the graph, (B, K, ...) with K >= k.

        Returns:
            (B, *shape); of attention (B, k, length).
        """
        if self.output == POOLED:
            return values[:, self.k - 1]
        if self.output == CONCAT:
            return concatenate(values[:, : self.k], self.layout.num_overlapping_tokens)
        if self.output == COMPLEMENTARY:
            return values[:, self.layout.num_overlapping_tokens :]
        return values[:, : self.k]

    def empty(self) -> Floats:
        """No item's vectors, (0, *shape)."""
        return np.empty((0, *self.shape), np.float32)


def l2_normalize(x: NDArray[np.floating]) -> Floats:
    """Divide the last dimension by its L2 norm, in float32; a zero vector stays zero."""
    x = x.astype(np.float32, copy=False)
    norm = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    unit: Floats = (x / np.maximum(norm, 1e-12)).astype(np.float32, copy=False)
    return unit


def first_tokens(tokens_BKD: Floats, k: int) -> Floats:
    """The first ``k`` tokens of each item, (B, k, D).

    Raises:
        TokenCountError: ``k`` is not in ``1..K``.
    """
    return tokens_BKD[:, : check_token_count(k, tokens_BKD.shape[1], "these embeddings")]


def pool(tokens_BKD: Floats, num_overlapping: int, k: int | None = None) -> Floats:
    """The pooled embedding: the L2-normalized mean over the overlapping tokens among the first ``k``, (B, D)."""
    count = check_token_count(k, tokens_BKD.shape[1], "these embeddings")
    return l2_normalize(tokens_BKD[:, : min(count, num_overlapping)].mean(axis=1))


def concatenate(tokens_BKD: Floats, num_overlapping: int, k: int | None = None) -> Floats:
    """The overlapping tokens among the first ``k``, each normalized, side by side, of length 1.

    Returns:
        (B, min(k, num_overlapping) * D).
    """
    count = check_token_count(k, tokens_BKD.shape[1], "these embeddings")
    chosen = l2_normalize(tokens_BKD[:, : min(count, num_overlapping)])
    return l2_normalize(chosen.reshape(len(chosen), -1))


def maxsim(queries_QKD: Floats, items_BKD: Floats) -> Floats:
    """Late interaction (Khattab and Zaharia 2020, "ColBERT"): (Q, B).

    Each query token takes its most similar item token; the score is the mean over query tokens, so that it
    lies in -1..1 whatever k is. Give overlapping tokens only: complementary ones are not comparable
    between modalities.
    """
    queries, items = l2_normalize(queries_QKD), l2_normalize(items_BKD)
    scores = np.einsum("qkd,bjd->qbkj", queries, items, optimize=True)
    return np.asarray(scores.max(axis=-1).mean(axis=-1), dtype=np.float32)
