"""The synthetic proof: what it calls true is true, and the whole path runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.cross_decomposition import CCA
from torch import Tensor

from bench.quality.synthetic.cli import main
from bench.quality.synthetic.data import MODALITIES, FactorSizes, synthetic_split
from bench.quality.synthetic.linear_gaussian import Canonical, LinearPairs, LinearSizes
from bench.quality.synthetic.measures import ProbedTokens, order_scores
from fluxtalk.config import HeadConfig
from fluxtalk.model.head.token_head import TokenHead


def test_canonical_directions_are_what_cca_finds() -> None:
    """Against scikit-learn on a large sample: the same correlations in the same order, and the same directions."""
    sizes = LinearSizes(shared=3, private=2, length=2, feature_dim=7, noise=0.5)
    pairs = LinearPairs(sizes, seed=3)
    truth, sample = pairs.canonical(), pairs.draw("train", 40_000)
    one, two = (sample.variates(truth, m) for m in MODALITIES)
    assert (np.diff(truth.correlations_J) < 0).all()
    both = np.corrcoef(one, two, rowvar=False)
    np.testing.assert_allclose(np.diag(both[:3, 3:]), truth.correlations_J, atol=0.02)
    # Uncorrelated among themselves and across, of unit variance.
    np.testing.assert_allclose(np.cov(one, rowvar=False), np.eye(3), atol=0.03)
    np.testing.assert_allclose(both[:3, 3:] - np.diag(np.diag(both[:3, 3:])), 0, atol=0.02)
    found = CCA(n_components=3, scale=False).fit(*(sample.values[m].mean(axis=1) for m in MODALITIES))
    scores = found.transform(*(sample.values[m].mean(axis=1) for m in MODALITIES))
    for j in range(3):
        assert abs(np.corrcoef(scores[0][:, j], one[:, j])[0, 1]) > 0.99
        correlation = np.corrcoef(scores[0][:, j], scores[1][:, j])[0, 1]
        assert correlation == pytest.approx(truth.correlations_J[j], abs=0.01)


class _Oracle(TokenHead):
    """Token j says the canonical variates ``shown[j]``, and nothing else."""

    def __init__(self, canonical: Canonical, shown: Sequence[Sequence[int]]) -> None:
        dims = {m: len(d) for m, d in canonical.directions.items()}
        super().__init__(HeadConfig(dims, dim=8, num_register_tokens=len(shown), num_overlapping_tokens=len(shown)))
        self._canonical, self._shown = canonical, shown

    def tokens(self, modality: str, features_BLE: Tensor, mask_BL: Tensor | None, index_K: Tensor) -> Tensor:
        directions = torch.from_numpy(self._canonical.directions[modality]).float()
        read = features_BLE.mean(dim=1) @ torch.stack([directions[:, list(chosen)] for chosen in self._shown])
        return read.transpose(0, 1)[:, index_K]


def _order_of(shown: Sequence[Sequence[int]]) -> dict[str, Any]:
    pairs = LinearPairs(LinearSizes(shared=6, private=2, length=2, feature_dim=10), seed=1)
    truth, train, test = pairs.canonical(), pairs.draw("train", 300), pairs.draw("test", 300)
    head = _Oracle(truth, shown)
    return order_scores(ProbedTokens(head, train.features, test.features, 300), train, test, truth, seed=0)


def test_the_order_of_tokens_is_seen_and_shuffling_hides_it() -> None:
    """Tokens that say the canonical variates in their order, backwards, and all the same."""
    right = _order_of([(0, 1), (2, 3), (4, 5)])
    known = np.array([right["by_direction"][str(k)] for k in (1, 2, 3)])
    np.testing.assert_allclose(known, np.repeat(np.tri(3), 2, axis=1), atol=0.05)
    share = np.square(right["correlations"]).reshape(3, 2).sum(axis=1)
    gains = [right["gain"][k]["mean"] for k in "123"]
    np.testing.assert_allclose(gains, share / share.sum(), atol=0.05)
    # Over all orders, each token comes as often first as last, and none repeats another.
    np.testing.assert_allclose(list(right["gain_shuffled"].values()), [1 / 3] * 3, atol=0.02)
    assert all(right["ahead"][k]["low"] > 0 for k in "12")
    assert right["ahead"]["1"]["mean"] == pytest.approx(gains[0] - 1 / 3, abs=0.02)

    backwards = _order_of([(4, 5), (2, 3), (0, 1)])
    assert all(backwards["ahead"][k]["high"] < 0 for k in "12")
    np.testing.assert_allclose(*(list(r["gain_shuffled"].values()) for r in (backwards, right)), atol=1e-3)

    same = _order_of([(0, 1)] * 3)
    assert all(same["ahead"][k]["mean"] == pytest.approx(0, abs=1e-3) for k in "12")
    assert all(same["gain"][k]["mean"] == pytest.approx(0, abs=1e-3) for k in "23")


def test_factors_are_what_they_are_called() -> None:
    """Shared factors fall in variance and are the same in both modalities; private ones are independent of all."""
    sizes = FactorSizes(shared=3, private=2, importance=0.5)
    split = synthetic_split(sizes, 0, "train", 20_000)
    np.testing.assert_allclose(split.factors.shared.var(axis=0), [1, 0.5, 0.25], rtol=0.05)
    everything = np.concatenate([split.factors.shared, *split.factors.private.values()], axis=1)
    correlation = np.corrcoef(everything, rowvar=False)
    assert np.abs(correlation - np.eye(7)).max() < 0.03
    again, other = synthetic_split(sizes, 0, "train", 50), synthetic_split(sizes, 0, "test", 50)
    rows = np.arange(50)
    assert not np.allclose(again.factors.shared, other.factors.shared)
    features = [split_.features["one"].batch(rows).features_BLD.numpy() for split_ in (again, other)]
    assert features[0].shape == (50, sizes.length, sizes.feature_dim)
    assert not np.allclose(features[0], features[1])


def test_the_whole_proof_runs_and_goes_on_where_it_was(tmp_path: Path) -> None:
    output, picture = tmp_path / "synthetic.json", tmp_path / "picture.png"
    done = CliRunner().invoke(main, ["--quick", "-o", str(output), "--draw", "--picture", str(picture)])
    assert done.exit_code == 0, done.output
    content = json.loads(output.read_text())
    assert {"untrained", "none", "reconstruction", "contrast"} <= set(content["factors"])
    for result in content["factors"].values():
        assert set(result["shared_by_pooled"]) == {"1", "2"}
        assert abs(result["others_private_by_pooled"]["mean"]) < 0.5
    for result in content["order"].values():
        total = sum(gain["mean"]["mean"] for gain in result["gain"].values())
        assert total == pytest.approx(sum(g["mean"] for g in result["gain_shuffled"].values()), abs=0.01)
        assert set(result["ahead"]) == {"1"}
    assert {"date", "architecture", "git_revision"} <= set(content)
    assert picture.stat().st_size > 10_000
    assert "contrast" in done.output
    again = CliRunner().invoke(main, ["--quick", "-o", str(output)])
    assert again.exit_code == 0, again.output
    assert "factors/none/0" not in again.output
    assert json.loads(output.read_text())["runs"] == content["runs"]
