"""Loss of quality of a precision on held-out pairs: the gate that an export has to pass.

Every precision is compared with the float32 graph, whose parity with eager PyTorch is measured first, on raw items of
the validation split, through the session that serves. The gate is the same three for all: recall, neighbors, median
cosine. The smallest cosine of all items is reported, and refuses nothing: one odd item says little about the rest.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fluxtalk.arrays import Array, Booleans, Floats
from fluxtalk.datasets import Items, PairDataset, Split
from fluxtalk.errors import DataError
from fluxtalk.preprocess import Preprocessor
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.batching import batches_by_length
from fluxtalk.scoring.metrics import first_hit_ranks
from fluxtalk.scoring.pair_recall import PairRecall, measure_pair_recall
from fluxtalk.scoring.parity import TIES, Neighbors, embedding_difference, largest, moved_neighbors
from fluxtalk.scoring.retrieval import ItemTokens, retrieval
from fluxtalk.tokens import Selection, TokenLayout

MAX_RECALL_LOSS = 0.01
"""Largest loss of Recall@10 in any direction and at any k, by its one-sided 95 % bound over queries; a single query may
be lost in any case."""
MAX_MOVED = {"fp32": 0.0, "fp16": 0.01, "bf16": 0.02, "int8": 0.01}
"""Precision to the share of queries whose nearest item of the other modality may change, of those that float32 itself
separates; one query may in any case."""
MIN_MEDIAN_COSINE = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.995, "int8": 0.995}
"""Precision to the smallest median over items, of every modality and k, of an embedding's cosine with float32's."""

_CUTOFF = 10
_NORMAL_95 = 1.645
"""One-sided 95 % quantile of the normal distribution."""
_BATCH = 32
_ALONE = 16
"""Items that are compared alone and in a batch."""
_TIMED = 15
"""Runs of which the median is a latency."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out items of every modality, preprocessed."""

    split: Split
    prepared: Mapping[str, list[Array]]
    """Modality to its prepared items, in the order of the split."""
    preprocess: Mapping[str, Preprocessor]
    layout: TokenLayout
    """Register tokens of the bundle."""
    aggregation: str

    def run(self, modality: str, session: Session, k: int) -> tuple[Floats, Floats]:
        """Compute tokens and embeddings of all items: (items, k, dim) both."""
        preprocess, prepared = self.preprocess[modality], self.prepared[modality]
        tokens: Floats | None = None
        embeddings: Floats | None = None
        for rows in batches_by_length([preprocess.length(array) for array in prepared], _BATCH):
            found = self._run(modality, session, rows.tolist(), k)
            if tokens is None or embeddings is None:
                tokens = np.empty((len(prepared), *found["tokens"].shape[1:]), np.float32)
                embeddings = np.empty_like(tokens)
            tokens[rows], embeddings[rows] = found["tokens"], found["embeddings"]
        assert tokens is not None
        assert embeddings is not None
        return tokens, embeddings

    def pair_recall(self, tokens: Mapping[str, Floats]) -> PairRecall:
        """Recall at every k of the query and of the items, of the tokens of all items."""
        ids = {modality: items.groups for modality, items in self.split.items.items()}
        return measure_pair_recall(tokens, ids, self.layout.num_overlapping_tokens, self.layout.summary)

    def rows_apart(self, modality: str, session: Session, k: int) -> float:
        """Largest difference between an item's embedding alone and in a batch of others."""
        preprocess, prepared = self.preprocess[modality], self.prepared[modality]
        order = np.argsort([preprocess.length(array) for array in prepared], kind="stable")
        rows = order[np.linspace(0, len(order) - 1, min(_ALONE, len(order))).astype(int)].tolist()
        together = self._run(modality, session, rows, k)["embeddings"]
        alone = [self._run(modality, session, [row], k)["embeddings"] for row in rows]
        return largest(np.concatenate(alone) - together)

    def latency(self, modality: str, session: Session, k: int) -> float:
        """Median time for one item in milliseconds, without preprocessing."""
        times = []
        for _ in range(_TIMED):
            start = time.perf_counter()
            self._run(modality, session, [0], k)
            times.append(time.perf_counter() - start)
        return round(1000 * statistics.median(times), 3)

    def _run(self, modality: str, session: Session, rows: Sequence[int], k: int) -> dict[str, Floats]:
        batch = self.preprocess[modality].collate([self.prepared[modality][row] for row in rows])
        return session.run(batch, k)


@dataclass(frozen=True)
class Scores:
    """Outputs of one precision for the held-out items, and their recall."""

    tokens: dict[str, Floats]
    embeddings: dict[str, Floats]
    recall: dict[str, Any]
    hits: dict[str, dict[str, Booleans]]
    """Direction to k to the queries that find a right item among the first 10."""
    rows: dict[str, float]
    """Modality to the largest difference between an item's embedding alone and in a batch."""

    def outputs(self, selection: Selection, modality: str) -> Floats:
        """Output of the graph from which a selection is cut."""
        return (self.embeddings if selection.graph_output == "embeddings" else self.tokens)[modality]


@dataclass(frozen=True)
class RecallLoss:
    """Loss of Recall@10 in one direction and at one k, as shares of the queries; negative if it is a gain."""

    loss: float
    bound: float
    """One-sided 95 % bound: mean + 1.645 standard errors of the paired difference of each query's hit."""
    queries: int

    @classmethod
    def between(cls, before: Booleans, after: Booleans) -> RecallLoss:
        """Compare the hits of the same queries."""
        lost = before.astype(np.float64) - after
        error = lost.std(ddof=1) / math.sqrt(len(lost)) if len(lost) > 1 else 0.0
        return cls(float(lost.mean()), float(lost.mean() + _NORMAL_95 * error), len(lost))

    @property
    def beyond(self) -> float:
        """Share by which it is more than the gate allows; a loss of one query is not."""
        one = self.loss * self.queries <= 1 + 1e-9
        return min(self.bound - MAX_RECALL_LOSS, 0.0) if one else self.bound - MAX_RECALL_LOSS


@dataclass(frozen=True)
class Quality:
    """Differences of one precision from float32, the worst over all directions and k.

    The fields' names are those of the bundle's ``quality.json``.
    """

    items: dict[str, int]
    """Modality to the number of items compared."""
    measured_on: str
    """Description of the backend that ran the graphs."""
    max_abs: float
    mean_abs: float
    min_cosine: float
    """Smallest cosine of all items; reported only."""
    median_cosine: float
    """Smallest median over the items, of modalities and k."""
    mean_cosine: dict[str, float]
    top1: float
    """Smallest share, over directions and k, of separated queries whose nearest item stays the same."""
    separated: int
    """Queries in that direction of which float32's noise does not explain the lead of the first item."""
    queries: int
    """Number of queries in that direction."""
    recall_loss: float
    """Largest loss of Recall@10 over directions and k; negative if it is a gain."""
    recall_bound: float
    """One-sided 95 % bound of that loss over queries."""
    recall_queries: int
    """Number of queries scored in that direction."""
    rows: dict[str, float]
    """Modality to the largest difference between an item's embedding alone and in a batch."""
    broken: list[str] = field(default_factory=list)
    """One phrase for each bound of the gate that is exceeded."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON, rounded so that the same machine writes the same file."""
        return {**_rounded(dataclasses.asdict(self)), "holds": not self.broken}

    def line(self) -> str:
        """One line for people."""
        return (
            f"median cosine {self.median_cosine:.6f} (smallest {self.min_cosine:.6f}), top-1 agreement "
            f"{100 * self.top1:.1f} % of {self.separated} separated queries, Recall@10 "
            f"{0.0 - 100 * self.recall_loss:+.2f} points at worst (95 % bound {0.0 - 100 * self.recall_bound:+.2f}), "
            f"rows apart {max(self.rows.values()):.0e}"
        )


def held_out_items(
    dataset: PairDataset,
    preprocess: Mapping[str, Preprocessor],
    limit: int,
    layout: TokenLayout,
    aggregation: str,
    split_name: str = "validation",
) -> HeldOut:
    """Take the counted items of up to ``limit`` ids, spread evenly over a split.

    Raises:
        DataError: the split lacks a modality, or has no pair.
        InputError: an item cannot be preprocessed.
    """
    split = dataset.split(split_name)
    missing = sorted(set(preprocess) - set(split.items))
    if missing or len(split.ids) < 2:
        what = f"no {', '.join(missing)}" if missing else f"{len(split.ids)} ids"
        raise DataError(
            f"The {split_name} split of {dataset.name} has {what}, so quality cannot be measured on it; "
            "name held-out pairs with --eval-data."
        )
    chosen = np.linspace(0, len(split.ids) - 1, min(limit, len(split.ids))).astype(int)
    position = np.full(len(split.ids), -1)
    position[chosen] = np.arange(len(chosen))
    items, prepared = {}, {}
    for modality, part in preprocess.items():
        whole = split.items[modality]
        rows = np.flatnonzero(whole.counted & (position[whole.groups] >= 0))
        values = [whole.values[row] for row in rows.tolist()]
        prepared[modality] = [part.prepare(value) for value in values]
        items[modality] = Items(values, position[whole.groups[rows]], np.ones(len(rows), dtype=bool))
    sample = Split(split.name, tuple(split.ids[i] for i in chosen.tolist()), items, split.seen[chosen])
    return HeldOut(sample, prepared, preprocess, layout, aggregation)


def score(held_out: HeldOut, sessions: Mapping[str, Session], num_tokens: int) -> Scores:
    """Run a precision's sessions over the held-out items, and score them."""
    tokens, embeddings, rows = {}, {}, {}
    for modality, session in sessions.items():
        tokens[modality], embeddings[modality] = held_out.run(modality, session, num_tokens)
        rows[modality] = held_out.rows_apart(modality, session, num_tokens)
    shared = held_out.layout.num_overlapping_tokens
    compared = {m: ItemTokens(t, shared, held_out.aggregation) for m, t in tokens.items()}
    recall = retrieval(compared, held_out.split)["recall"]
    return Scores(tokens, embeddings, recall, _hits(compared, held_out.split), rows)


def _hits(compared: Mapping[str, ItemTokens], split: Split) -> dict[str, dict[str, Booleans]]:
    """Direction to k to the queries, of those with a partner, that find one among the first 10."""
    hits: dict[str, dict[str, Booleans]] = {}
    ids = {m: split.items[m].groups for m in compared}
    for source, target in itertools.permutations(compared, 2):
        asked = np.isin(ids[source], ids[target])
        if not asked.any():
            continue
        hits[f"{source}->{target}"] = {
            str(k): first_hit_ranks(
                compared[source].prefix(k)[asked], compared[target].prefix(k), ids[source][asked], ids[target]
            )
            < _CUTOFF
            for k in range(1, compared[source].num_tokens + 1)
        }
    return hits


def compare_quality(
    held_out: HeldOut,
    reference: Scores,
    found: Scores,
    precision: str,
    noise: Mapping[str, float],
    measured_on: str,
) -> Quality:
    """Compare a precision's scores with those of float32, and hold them against the gate.

    A neighbor counts if float32 itself separates first from second: if the first leads by more than twice the largest
    difference of a score that float32's noise explains. Elements of an embedding of D numbers that are off by at most n
    move a score with a vector of length 1 by at most n sqrt(D), and both sides are off.

    Args:
        reference: scores of float32.
        found: scores of the precision.
        noise: modality to the noise of float32 on an embedding's element (`Float32Noise.noise`).
        measured_on: what ``found`` ran on, for people.
    """
    differences = {m: embedding_difference(found.embeddings[m], reference.embeddings[m]) for m in found.embeddings}
    cosines = {m: _cosines(found.embeddings[m], reference.embeddings[m]) for m in found.embeddings}
    neighbors = Neighbors(0, 0, 0)
    recall = RecallLoss(-1.0, -1.0, 0)
    for direction, by_k in reference.hits.items():
        query, gallery = direction.split("->")
        dim = reference.embeddings[query].shape[-1]
        margin = max(TIES, 2 * math.sqrt(dim) * (noise[query] + noise[gallery]))
        for k, hits in by_k.items():
            chosen = held_out.layout.select(int(k))
            mine, theirs = (
                [chosen.cut(scores.outputs(chosen, modality)) for modality in (query, gallery)]
                for scores in (found, reference)
            )
            moved = moved_neighbors(mine[0], mine[1], theirs[0], theirs[1], margin)
            neighbors = max(neighbors, moved, key=lambda one: (_moved(one), one.separated))
            # By the loss beyond what is allowed: one query of few is more points than ten of many.
            loss = RecallLoss.between(hits, found.hits[direction][k])
            recall = max(recall, loss, key=lambda one: (one.beyond, one.loss, one.queries))
    worst = Quality(
        items={m: len(part) for m, part in held_out.prepared.items()},
        measured_on=measured_on,
        max_abs=max(d.max_abs for d in differences.values()),
        mean_abs=max(d.mean_abs for d in differences.values()),
        min_cosine=min(d.min_cosine for d in differences.values()),
        median_cosine=min(float(np.median(part, axis=0).min()) for part in cosines.values()),
        mean_cosine={m: float(part.mean()) for m, part in cosines.items()},
        top1=1 - _moved(neighbors),
        separated=neighbors.separated,
        queries=neighbors.queries,
        recall_loss=recall.loss,
        recall_bound=recall.bound,
        recall_queries=recall.queries,
        rows=found.rows,
    )
    return dataclasses.replace(worst, broken=_broken(worst, recall, neighbors, precision))


def _broken(found: Quality, recall: RecallLoss, neighbors: Neighbors, precision: str) -> list[str]:
    phrases = []
    if not found.median_cosine >= MIN_MEDIAN_COSINE[precision]:
        phrases.append(
            f"the median cosine is {found.median_cosine:.5f} and not at least {MIN_MEDIAN_COSINE[precision]}"
        )
    if not neighbors.moved <= max(1, MAX_MOVED[precision] * neighbors.separated):
        phrases.append(
            f"{neighbors.moved} of {neighbors.separated} queries that float32 separates find another nearest item, and "
            f"not at most {100 * MAX_MOVED[precision]:.0f} %"
        )
    if not recall.beyond <= 1e-9:
        phrases.append(
            f"Recall@10 falls by {100 * recall.loss:.2f} points ({round(recall.loss * recall.queries)} of "
            f"{recall.queries} queries; 95 % bound {100 * recall.bound:.2f}) and not by at most "
            f"{100 * MAX_RECALL_LOSS:.0f}, or one query"
        )
    return phrases


def _moved(neighbors: Neighbors) -> float:
    return neighbors.moved / max(1, neighbors.separated)


def _cosines(found: Floats, expected: Floats) -> Floats:
    """Cosine of each item's embeddings at every k: (B, K). Both have length 1, up to rounding; NaN counts as -1."""
    cosines: Floats = np.einsum("bkd,bkd->bk", found.astype(np.float64), expected.astype(np.float64))
    return np.nan_to_num(cosines, nan=-1.0)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) and abs(value) < 0.9 else value
