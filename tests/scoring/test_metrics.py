"""Retrieval scores against plain loops and known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import hypergeom

from fluxtalk.scoring.metrics import chance_at, first_hit_ranks, ndcg_at, recall_at, reciprocal_rank_at


def test_ranks_equal_plain_loops() -> None:
    rng = np.random.default_rng(0)
    # Few distinct small integers: scores are exact, ties are frequent, and many ids have several positives.
    queries = rng.integers(-2, 3, (37, 4)).astype(np.float32)
    gallery = rng.integers(-2, 3, (53, 4)).astype(np.float32)
    gallery_ids = rng.integers(0, 15, 53)
    query_ids = rng.choice(gallery_ids, 37)
    ranks = first_hit_ranks(queries, gallery, query_ids, gallery_ids)
    for q in range(37):
        scores = [float(np.dot(queries[q], item)) for item in gallery]
        best = max(score for score, id_ in zip(scores, gallery_ids, strict=True) if id_ == query_ids[q])
        wrong = [score for score, id_ in zip(scores, gallery_ids, strict=True) if id_ != query_ids[q]]
        assert ranks[q] == sum(score >= best for score in wrong)


def test_blocks_do_not_change_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    queries, gallery, ids = rng.standard_normal((20, 8)), rng.standard_normal((20, 8)), np.arange(20)
    whole = first_hit_ranks(queries, gallery, ids, ids)
    monkeypatch.setattr("fluxtalk.scoring.metrics.MAX_SCORES", 70)
    assert np.array_equal(whole, first_hit_ranks(queries, gallery, ids, ids))
    assert whole.any()


def test_late_interaction_ranks_by_maxsim() -> None:
    """Against the formula: each query token's best item token, averaged."""
    rng = np.random.default_rng(2)
    queries, gallery, ids = rng.standard_normal((9, 3, 5)), rng.standard_normal((9, 2, 5)), np.arange(9)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, gallery)]
    scores = np.array([[np.mean([max(q @ g for g in item) for q in query]) for item in unit[1]] for query in unit[0]])
    expected = [sum(scores[i, j] >= scores[i, i] for j in range(9) if j != i) for i in range(9)]
    assert first_hit_ranks(queries, gallery, ids, ids).tolist() == expected


def test_any_of_several_positives_is_right() -> None:
    gallery = np.array([[0.2, 0.0], [0.9, 0.0], [0.5, 0.0]])
    ranks = first_hit_ranks(np.array([[1.0, 0.0]]), gallery, np.array([7]), np.array([7, 3, 7]))
    assert ranks.tolist() == [1]  # 0.5 is the best right one; only 0.9 is above it


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_a_constant_or_broken_embedding_scores_nothing(value: float) -> None:
    same = np.full((50, 3), value)
    ranks = first_hit_ranks(same, same, np.arange(50), np.arange(50))
    assert ranks.tolist() == [49] * 50
    assert recall_at(ranks) == {"1": 0.0, "5": 0.0, "10": 0.0}


def test_recall_counts_ranks_below_the_cutoff() -> None:
    assert recall_at(np.array([0, 1, 4, 5, 9, 10]), (1, 5, 10)) == {"1": 1 / 6, "5": 3 / 6, "10": 5 / 6}


def test_chance_is_the_hypergeometric_distribution() -> None:
    rng = np.random.default_rng(2)
    gallery_ids = rng.integers(0, 30, 100)
    query_ids = rng.choice(gallery_ids, 40)
    for cutoff, chance in chance_at(query_ids, gallery_ids, (1, 5, 10, 100, 1000)).items():
        expected = [
            1 - hypergeom(100, int((gallery_ids == id_).sum()), min(int(cutoff), 100)).pmf(0) for id_ in query_ids
        ]
        assert chance == pytest.approx(np.mean(expected), abs=1e-12)


def test_chance_is_what_random_scores_reach() -> None:
    rng = np.random.default_rng(3)
    gallery_ids = np.repeat(np.arange(20), rng.integers(1, 4, 20))
    query_ids = np.arange(20)
    found = [
        recall_at(
            first_hit_ranks(
                rng.random((20, 16)) - 0.5, rng.random((len(gallery_ids), 16)) - 0.5, query_ids, gallery_ids
            )
        )
        for _ in range(1000)
    ]
    for cutoff, chance in chance_at(query_ids, gallery_ids).items():
        # Not all orders are equally likely for one query, but they are over queries and galleries drawn alike.
        assert np.mean([recall[cutoff] for recall in found]) == pytest.approx(chance, abs=0.015)


def test_chance_of_one_in_a_thousand() -> None:
    chance = chance_at(np.arange(1000), np.arange(1000))
    assert chance == pytest.approx({"1": 0.001, "5": 0.005, "10": 0.01})


@pytest.mark.parametrize("several", [1, 4, 30])
def test_ndcg_and_mrr_are_those_of_trec_eval(several: int) -> None:
    trec = pytest.importorskip("pytrec_eval", reason="pytrec_eval comes with mteb")
    rng = np.random.default_rng(3)
    queries, gallery = rng.standard_normal((23, 6)), rng.standard_normal((60, 6))
    gallery_ids = np.arange(60) // several
    query_ids = rng.choice(gallery_ids, 23)
    scores = queries.astype(np.float32) @ gallery.astype(np.float32).T
    right = {str(q): {str(i): 1 for i in np.flatnonzero(gallery_ids == query_ids[q])} for q in range(23)}
    found = {str(q): {str(i): float(scores[q, i]) for i in np.argsort(-scores[q])[:10]} for q in range(23)}
    told = trec.RelevanceEvaluator(right, {"ndcg_cut_10", "recip_rank"}).evaluate(found).values()
    assert ndcg_at(queries, gallery, query_ids, gallery_ids) == pytest.approx(np.mean([t["ndcg_cut_10"] for t in told]))
    ranks = first_hit_ranks(queries, gallery, query_ids, gallery_ids)
    assert reciprocal_rank_at(ranks) == pytest.approx(np.mean([t["recip_rank"] for t in told]))


def test_ties_and_nan_count_against_the_model_in_ndcg_too() -> None:
    gallery, ids = np.ones((20, 2)), np.arange(20)
    assert ndcg_at(np.ones((3, 2)), gallery, ids[:3], ids) == 0
    assert ndcg_at(np.full((3, 2), np.nan), gallery, ids[:3], ids) == 0
    # All right items first, ties among themselves: nothing better is possible.
    assert ndcg_at(np.ones((1, 2)), np.vstack([gallery, -gallery]), np.array([0]), np.repeat([0, 1], 20)) == 1
