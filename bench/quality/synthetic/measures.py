"""Scores of a head's tokens against factors whose truth is known.

Shapes: B items, N tokens, K overlapping tokens, D dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.quality.probes import Doubles, ProbeScore, paired_bootstrap_difference, probe_score
from bench.quality.synthetic.data import MODALITIES, Factors, InMemoryFeatures, SyntheticSplit
from bench.quality.synthetic.linear_gaussian import Canonical, LinearSplit
from fluxtalk.arrays import Floats
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.scoring.metrics import first_hit_ranks, recall_at
from fluxtalk.scoring.retrieval import ItemTokens
from fluxtalk.tokens import pool
from fluxtalk.train.results.score import all_tokens

Read = Callable[[Floats], NDArray[Any]]


class ProbedTokens:
    """The tokens of training and test items, and probes from one to the other.

    Args:
        train: features that probes are fitted to; ``test`` those that they are scored on.
        items: training items that probes see.
    """

    def __init__(
        self, head: TokenHead, train: Mapping[str, InMemoryFeatures], test: Mapping[str, InMemoryFeatures], items: int
    ) -> None:
        self.overlapping = head.config.num_overlapping_tokens
        self.aggregation = head.config.aggregation
        self.train = {m: all_tokens(head, m, s, np.arange(min(items, len(s)))) for m, s in train.items()}
        self.test = {m: all_tokens(head, m, s, np.arange(len(s))) for m, s in test.items()}

    def score(self, modality: str, read: Read, train_y: Doubles, test_y: Doubles) -> ProbeScore:
        """R^2 of a target read from the vectors that ``read`` takes of the tokens."""
        tokens = self.train[modality]
        return probe_score(read(tokens), train_y[: len(tokens)], read(self.test[modality]), test_y)

    def recall_at_1(self) -> dict[str, float]:
        """Share of items whose partner is found first, by k, over both directions."""
        found: dict[str, float] = {}
        for k in range(1, self.overlapping + 1):
            vectors = {m: ItemTokens(t, self.overlapping, self.aggregation).prefix(k) for m, t in self.test.items()}
            ids = np.arange(len(vectors[MODALITIES[0]]))
            shares = [
                recall_at(first_hit_ranks(vectors[a], vectors[b], ids, ids))["1"]
                for a, b in (MODALITIES, MODALITIES[::-1])
            ]
            found[str(k)] = float(np.mean(shares))
        return found


def factor_scores(probed: ProbedTokens, train: SyntheticSplit, test: SyntheticSplit) -> dict[str, Any]:
    """R^2 on test items, means over both modalities.

    Returns:
        ``shared_by_pooled[k]`` and ``shared_by_tokens[k]`` (side by side), ``shared_by_factor`` (by all tokens, a
        list), ``private_by_complementary``, ``shared_by_complementary``, ``private_by_pooled``,
        ``others_private_by_complementary``, ``others_private_by_pooled``, and ``recall_at_1[k]``.
    """
    count = probed.overlapping

    def mean(read: Read, truth: Callable[[Factors, str], Doubles]) -> float:
        scores = [probed.score(m, read, truth(train.factors, m), truth(test.factors, m)).overall for m in MODALITIES]
        return round(float(np.mean(scores)), 4)

    def complementary(tokens: Floats) -> Floats:
        return tokens[:, count]

    pooled = [_pooled(count, k) for k in range(1, count + 1)]
    side_by_side = [_first(k) for k in range(1, count + 1)]
    by_factor = [
        probed.score(m, side_by_side[-1], train.factors.shared, test.factors.shared).per_target for m in MODALITIES
    ]
    return {
        "shared_by_pooled": {str(k): mean(read, _shared) for k, read in enumerate(pooled, start=1)},
        "shared_by_tokens": {str(k): mean(read, _shared) for k, read in enumerate(side_by_side, start=1)},
        "shared_by_factor": [round(float(x), 4) for x in np.mean(by_factor, axis=0)],
        "private_by_complementary": mean(complementary, _private),
        "shared_by_complementary": mean(complementary, _shared),
        "private_by_pooled": mean(pooled[-1], _private),
        "others_private_by_complementary": mean(complementary, _others_private),
        "others_private_by_pooled": mean(pooled[-1], _others_private),
        "recall_at_1": {k: round(value, 4) for k, value in probed.recall_at_1().items()},
    }


def order_scores(
    probed: ProbedTokens, train: LinearSplit, test: LinearSplit, canonical: Canonical, seed: int
) -> dict[str, Any]:
    """Agreement of the tokens' order with that of the shared directions.

    Returns:
        ``by_direction[k]``: R^2 of each canonical variate from tokens 1..k, a list, mean over modalities.
        ``gain[k]``: ``mean``, ``low`` and ``high`` of what token k adds to the R^2 over all variates, weighted by their
        squared correlations, with its 95 % bootstrap interval over items; ``gain_shuffled[k]``: its mean over all
        orders of the registers; ``ahead[k]``: by how much tokens 1..k are ahead of the mean over all choices of k
        tokens, with the paired 95 % interval. Over shuffled registers it is 0 in the mean.
    """
    count = probed.overlapping
    weight = canonical.correlations_J
    targets = {m: (train.variates(canonical, m) * weight, test.variates(canonical, m) * weight) for m in MODALITIES}

    def explained(chosen: tuple[int, ...]) -> tuple[Doubles, Doubles]:
        scores = [probed.score(m, lambda t: t[:, chosen].reshape(len(t), -1), *targets[m]) for m in MODALITIES]
        return np.mean([s.per_item for s in scores], axis=0), np.mean([s.per_target for s in scores], axis=0)

    counts = range(1, count + 1)
    known = {chosen: explained(chosen) for k in counts for chosen in itertools.combinations(range(count), k)}
    first = [known[tuple(range(k))][0] for k in counts]
    random = [np.mean([each for chosen, (each, _) in known.items() if len(chosen) == k], axis=0) for k in counts]
    return {
        "correlations": [round(float(x), 4) for x in weight],
        "by_direction": {str(k): [round(float(x), 4) for x in known[tuple(range(k))][1]] for k in counts},
        "gain": _by_k([_paired(a, b, seed) for a, b in itertools.pairwise([np.zeros_like(first[0]), *first])]),
        "gain_shuffled": _by_k([round(float(x), 4) for x in np.diff([each.mean() for each in random], prepend=0)]),
        "ahead": _by_k([_paired(b, a, seed) for a, b in zip(first[:-1], random[:-1], strict=True)]),
        "recall_at_1": {k: round(value, 4) for k, value in probed.recall_at_1().items()},
    }


def _by_k(values: Sequence[Any]) -> dict[str, Any]:
    return {str(k): value for k, value in enumerate(values, start=1)}


def _paired(before: Doubles, after: Doubles, seed: int) -> dict[str, float]:
    """Gain in R^2 of ``after`` over ``before``, with its interval."""
    difference = paired_bootstrap_difference(after, before, seed)
    return {name: round(value, 4) for name, value in difference._asdict().items()}


def _pooled(count: int, k: int) -> Read:
    return lambda tokens: pool(tokens, count, k)


def _first(k: int) -> Read:
    return lambda tokens: tokens[:, :k].reshape(len(tokens), -1)


def _shared(factors: Factors, _modality: str) -> Doubles:
    return factors.shared


def _private(factors: Factors, modality: str) -> Doubles:
    return factors.private[modality]


def _others_private(factors: Factors, modality: str) -> Doubles:
    one, two = MODALITIES
    return factors.private[two if modality == one else one]
