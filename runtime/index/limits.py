"""Choice of k for both sides of a search, within limits, from the curve that the export measured.

The one place that chooses: the library, the command line and the server ask `choose`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fluxtalk.errors import UsageError
from fluxtalk.scoring.pair_recall import ServingCurve
from fluxtalk.tokens import CONCAT, Comparison, StoredTokens, TokenLayout, check_token_count


@dataclass(frozen=True)
class Limits:
    """Limits on a search; None is no limit.

    Raises:
        UsageError: a limit is not a number of its range.
    """

    min_recall: float | None = None
    """Smallest share of the full recall, in 0..1: that of all tokens on both sides, on held-out pairs."""
    max_bytes: int | None = None
    """Most bytes of an item's vectors that are read, as the index stores them."""
    deadline_ms: float | None = None
    """Most milliseconds that the session takes for the query, as the export timed it."""

    def __post_init__(self) -> None:
        for name, smallest, largest in (("min_recall", 0, 1), ("max_bytes", 1, math.inf), ("deadline_ms", 0, math.inf)):
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not smallest <= value <= largest:
                wanted = "from 0 to 1" if largest == 1 else f"of at least {smallest}"
                raise UsageError(f"{name} is a number {wanted}; got {value!r}.")

    @property
    def given(self) -> list[str]:
        """Names of the limits that are set."""
        return [name for name in ("min_recall", "max_bytes", "deadline_ms") if getattr(self, name) is not None]


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Choice:
    """Tokens of both sides, and what the curve says of them."""

    comparison: Comparison
    recall: float
    """Recall on held-out pairs."""
    cutoff: int
    """Results among which a right one counts."""
    recall_share: float
    """Share of the full recall."""
    bytes_per_item: int
    """Bytes of an item's vectors that are read, as the index stores them."""
    embed_ms: float | None
    """Milliseconds of the query in the session, on the export's machine; None if it was not timed."""


@dataclass(frozen=True)
class Options:
    """Tokens that a search may compare."""

    stored: StoredTokens
    layout: TokenLayout
    """Register tokens of the bundle that embeds the query."""
    k: Any = None
    """Register tokens of the query; None may be chosen."""
    item_k: Any = None
    """Register tokens of each item; None may be chosen."""
    what: str = "this index"

    def comparisons(self, counts: Sequence[int]) -> list[Comparison]:
        """List what compares, by rising k of the query, then of the items.

        Args:
            counts: numbers of tokens among which to choose.

        Raises:
            TokenCountError: a k that is given is out of range.
            UsageError: those that are given do not compare.
        """
        return [
            self.stored.compare(self.layout.select(k, self.stored.output), item_k, self.what)
            for k, item_k in self._pairs([c for c in counts if c <= self.layout.num_overlapping_tokens])
        ]

    def _pairs(self, counts: Sequence[int]) -> Iterable[tuple[int, int]]:
        stored, k = self.stored, None if self.k is None else self.layout.select(self.k).k
        if self.item_k is not None:
            items = [check_token_count(self.item_k, stored.k, self.what, "item_k")]
        else:
            items = [stored.k] if stored.whole else [c for c in counts if c <= stored.shared]
        if stored.output != CONCAT:
            return itertools.product(counts if k is None else [k], items)
        if k is None:
            return zip(items, items, strict=True)
        return [(k, items[0] if self.item_k is not None else min(self.layout.select(k, CONCAT).shared, stored.k))]


def choose(
    options: Options,
    limits: Limits,
    curve: ServingCurve | None,
    modality: str,
    item_modality: str,
    bytes_of: Callable[[Comparison], int],
) -> Choice:
    """Choose the k of the query and of the items.

    With ``min_recall`` it is the fewest bytes of an item that reach it, then the smallest k of the query; without, the
    best recall, then the same.

    Args:
        curve: measured by the export of the bundle that embeds the query; None if it was not.
        modality: modality of the query.
        item_modality: modality of the items.
        bytes_of: gives the bytes of an item that a search reads.

    Raises:
        TokenCountError, UsageError: as for `Options.comparisons`.
        UsageError: nothing is within the limits, or the curve does not tell.
    """
    direction = f"{modality}->{item_modality}"
    if curve is None:
        raise UsageError(
            f"{' and '.join(limits.given)} choose k from a curve that the export measures, and this bundle has none: "
            "export its run again with held-out pairs (fluxtalk-export onnx RUN -o BUNDLE --eval-data DATA), or give k "
            "and item_k."
        )
    if direction not in curve.recall.recall:
        raise UsageError(
            f"The export measured {' and '.join(curve.recall.recall)}, and not {direction}; give k and item_k in place "
            f"of {' and '.join(limits.given)}."
        )
    if limits.deadline_ms is not None and modality not in curve.latency_ms:
        raise UsageError("This precision was not timed at export, so deadline_ms cannot choose; leave it out.")
    found = [_told(one, curve, direction, modality, bytes_of) for one in options.comparisons(curve.recall.counts)]
    within = [one for one in found if _keeps(one, limits)]
    if not within:
        raise UsageError(_nothing(found, limits))
    least = {one: (one.bytes_per_item, one.comparison.query.k, -one.recall_share) for one in within}
    if limits.min_recall is not None:
        return min(within, key=least.__getitem__)
    return min(within, key=lambda one: (-round(one.recall_share, 3), *least[one]))


def _told(
    comparison: Comparison,
    curve: ServingCurve,
    direction: str,
    modality: str,
    bytes_of: Callable[[Comparison], int],
) -> Choice:
    asked = (direction, comparison.query.output, comparison.query_tokens, comparison.item_tokens)
    recall, share = curve.recall.at(*asked), curve.recall.share(*asked)
    assert recall is not None
    assert share is not None
    ms = curve.latency_ms.get(modality, {}).get(comparison.query.k)
    return Choice(comparison, recall, curve.recall.cutoff, share, bytes_of(comparison), ms)


def _keeps(one: Choice, limits: Limits) -> bool:
    return (
        (limits.min_recall is None or one.recall_share >= limits.min_recall - 1e-9)
        and (limits.max_bytes is None or one.bytes_per_item <= limits.max_bytes)
        and (limits.deadline_ms is None or (one.embed_ms is not None and one.embed_ms <= limits.deadline_ms))
    )


def _nothing(found: Sequence[Choice], limits: Limits) -> str:
    asked = " and ".join(f"{name} = {getattr(limits, name):g}" for name in limits.given)
    known = {
        "min_recall": f"the best has {max(one.recall_share for one in found):.4g} of the full recall",
        "max_bytes": f"the smallest reads {min(one.bytes_per_item for one in found)} bytes of an item",
        "deadline_ms": f"the fastest takes {min((one.embed_ms or math.inf) for one in found):.4g} ms",
    }
    return f"No k of this search keeps {asked}: {', '.join(known[name] for name in limits.given)}; allow more."
