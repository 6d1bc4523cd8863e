"""Loss of quality of a precision on held-out pairs: the gate that an export has to pass.

Every precision is compared with the float32 graph, whose parity with eager PyTorch is measured first, on raw items of
the validation split, through the session that serves.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fluxtalk.arrays import Array, Floats
from fluxtalk.datasets import Items, PairDataset, Split
from fluxtalk.errors import DataError
from fluxtalk.preprocess import Preprocessor
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.batching import batches_by_length
from fluxtalk.scoring.pair_recall import PairRecall, measure_pair_recall
from fluxtalk.scoring.parity import Tolerance, embedding_difference, largest, nearest_agreement
from fluxtalk.scoring.retrieval import ItemTokens, retrieval

MAX_RECALL_LOSS = 0.01
"""Largest loss of Recall@10 in any direction and at any k; a single query may be lost in any case."""
MAX_MOVED = {"fp32": 0.0, "fp16": 0.01, "bf16": 0.02, "int8": 0.01}
"""Precision to the share of queries whose nearest item of the other modality may change; one query may in any case."""
_CUTOFF = "10"
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
    num_overlapping: int
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

    def queries(self, source: str, target: str) -> int:
        """Number of items of ``source`` that have a partner in ``target``."""
        return int(np.isin(self.split.items[source].groups, self.split.items[target].groups).sum())

    def pair_recall(self, tokens: Mapping[str, Floats]) -> PairRecall:
        """Recall at every k of the query and of the items, of the tokens of all items."""
        ids = {modality: items.groups for modality, items in self.split.items.items()}
        return measure_pair_recall(tokens, ids, self.num_overlapping)

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
    rows: dict[str, float]
    """Modality to the largest difference between an item's embedding alone and in a batch."""


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
    mean_cosine: dict[str, float]
    top1: float
    """Smallest share, over directions and k, of queries whose nearest item stays the same."""
    queries: int
    """Number of queries in that direction."""
    recall_loss: float
    """Largest loss of Recall@10 over directions and k; negative if it is a gain."""
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
            f"min cosine {self.min_cosine:.6f}, top-1 agreement {100 * self.top1:.1f} %, "
            f"Recall@10 {0.0 - 100 * self.recall_loss:+.2f} points at worst, rows apart {max(self.rows.values()):.0e}"
        )


def held_out_items(
    dataset: PairDataset,
    preprocess: Mapping[str, Preprocessor],
    limit: int,
    num_overlapping: int,
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
    return HeldOut(sample, prepared, preprocess, num_overlapping, aggregation)


def score(held_out: HeldOut, sessions: Mapping[str, Session], num_tokens: int) -> Scores:
    """Run a precision's sessions over the held-out items, and score them."""
    tokens, embeddings, rows = {}, {}, {}
    for modality, session in sessions.items():
        tokens[modality], embeddings[modality] = held_out.run(modality, session, num_tokens)
        rows[modality] = held_out.rows_apart(modality, session, num_tokens)
    compared = {m: ItemTokens(t, held_out.num_overlapping, held_out.aggregation) for m, t in tokens.items()}
    return Scores(tokens, embeddings, retrieval(compared, held_out.split)["recall"], rows)


def compare_quality(
    held_out: HeldOut, reference: Scores, found: Scores, precision: str, tolerance: Tolerance, measured_on: str
) -> Quality:
    """Compare a precision's scores with those of float32, and hold them against the gate.

    Args:
        reference: scores of float32.
        found: scores of the precision.
        tolerance: that of the precision, as it was made.
        measured_on: what ``found`` ran on, for people.
    """
    differences = {m: embedding_difference(found.embeddings[m], reference.embeddings[m]) for m in found.embeddings}
    cosines = {m: _mean_cosine(found.embeddings[m], reference.embeddings[m]) for m in found.embeddings}
    top1, queries = 1.0, 0
    loss, scored = -1.0, 0
    for direction, by_k in reference.recall.items():
        query, gallery = direction.split("->")
        asked = held_out.queries(query, gallery)
        for k in by_k:
            last = int(k) - 1
            agreement = nearest_agreement(
                found.embeddings[query][:, last],
                found.embeddings[gallery][:, last],
                reference.embeddings[query][:, last],
                reference.embeddings[gallery][:, last],
            )
            count = len(found.embeddings[query])
            top1, queries = min((top1, queries or count), (agreement, count))
            loss_at_k = by_k[k][_CUTOFF] - found.recall[direction][k][_CUTOFF]
            # By the loss beyond what is allowed: one query of few is more points than ten of many.
            loss, scored = max((loss, scored), (loss_at_k, asked), key=lambda one: _beyond(*one))
    worst = Quality(
        items={m: len(part) for m, part in held_out.prepared.items()},
        measured_on=measured_on,
        max_abs=max(d.max_abs for d in differences.values()),
        mean_abs=max(d.mean_abs for d in differences.values()),
        min_cosine=min(d.min_cosine for d in differences.values()),
        mean_cosine=cosines,
        top1=top1,
        queries=queries,
        recall_loss=loss,
        recall_queries=scored,
        rows=found.rows,
    )
    return dataclasses.replace(worst, broken=_broken(worst, tolerance, MAX_MOVED[precision]))


def _broken(found: Quality, tolerance: Tolerance, max_moved: float) -> list[str]:
    phrases = []
    for name in ("max_abs", "mean_abs"):
        value, allowed = getattr(found, name), getattr(tolerance, name)
        if allowed is not None and not value <= allowed:
            phrases.append(f"{name} is {value:.1e} and not at most {allowed:.0e}")
    if not found.min_cosine >= tolerance.min_cosine:
        phrases.append(f"the smallest cosine is {found.min_cosine:.5f} and not at least {tolerance.min_cosine}")
    moved = round((1 - found.top1) * found.queries)
    if not moved <= max(1, max_moved * found.queries):
        phrases.append(
            f"{moved} of {found.queries} queries find another nearest item, and not at most {100 * max_moved:.0f} %"
        )
    if not _beyond(found.recall_loss, found.recall_queries) <= 1e-9:
        lost, asked = round(found.recall_loss * found.recall_queries), found.recall_queries
        phrases.append(
            f"Recall@10 falls by {100 * found.recall_loss:.2f} points ({lost} of {asked} queries) and not by at most "
            f"{100 * MAX_RECALL_LOSS:.0f}, or one query"
        )
    return phrases


def _beyond(loss: float, queries: int) -> float:
    """Loss of recall beyond what the gate allows."""
    return loss - max(MAX_RECALL_LOSS, 1 / queries if queries else 0)


def _mean_cosine(found: Floats, expected: Floats) -> float:
    # Both have length 1, up to rounding.
    return float(np.einsum("bkd,bkd->bk", found.astype(np.float64), expected.astype(np.float64)).mean())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) and abs(value) < 0.9 else value
