"""Pairs whose truth is known: shared and private factors, seen token by token through frozen random encoders.

An item has shared factors c, the same in both modalities, and private factors u of each modality. Factor j of c has
variance ``importance ** j``, so that under noise of one size the first are the easiest to see and explain most.
Each of L feature vectors shows a random subset of the item's factors, another in every item: a head has to gather
over the vectors what each of them leaves out.

Shapes: B items, L feature vectors, E feature dimension, C shared factors, P private factors of a modality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bench.quality.probes import Doubles
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.model.encoders import Features
from fluxtalk.model.head.nested_dropout import derive_seed

MODALITIES = ("one", "two")


@dataclass(frozen=True)
class FactorSizes:
    """Numbers of factors, their weights, and the noise in which they are seen."""

    shared: int = 8
    private: int = 4
    importance: float = 0.75
    """Variance of each shared factor over that of the one before."""
    length: int = 8
    """Feature vectors of an item."""
    feature_dim: int = 96
    hidden: int = 128
    """Width of the random encoder."""
    visibility: float = 0.7
    """Probability that a feature vector shows a factor."""
    noise: float = 0.1
    """Standard deviation of what is added to each factor in each feature vector."""
    clutter: int = 48
    """Factors that are drawn anew for every feature vector: what is in a patch and says nothing of the item."""

    @property
    def factors(self) -> int:
        """Shared and private factors of one modality."""
        return self.shared + self.private

    def variances(self) -> Doubles:
        """Variances of the shared, then the private factors, (C + P,)."""
        shared: Doubles = self.importance ** np.arange(self.shared, dtype=np.float64)
        return np.concatenate([shared, np.ones(self.private)])


@dataclass(frozen=True)
class Factors:
    """True factors of some items."""

    shared: Doubles
    """(B, C)."""
    private: Mapping[str, Doubles]
    """Modality to (B, P)."""

    def of(self, modality: str) -> Doubles:
        """Factors that the modality can see, (B, C + P)."""
        return np.concatenate([self.shared, self.private[modality]], axis=1)


@dataclass(frozen=True)
class SyntheticSplit:
    """Items of both modalities, row i of each belonging together."""

    factors: Factors
    features: Mapping[str, InMemoryFeatures]

    def split(self, name: str) -> Split:
        """The same as a split of pairs, for samplers and scores; its raw values are row numbers."""
        rows = np.arange(len(self.factors.shared))
        items = {m: Items(range(len(rows)), rows, np.ones(len(rows), dtype=bool)) for m in self.features}
        return Split(name, tuple(map(str, rows)), items, np.zeros(len(rows), dtype=bool))


class InMemoryFeatures:
    """A `fluxtalk.train.features.sources.FeatureSource` of features in memory.

    Args:
        values_BLE: of all items.
    """

    def __init__(self, values_BLE: NDArray[np.float32]) -> None:
        self.dim = values_BLE.shape[2]
        self._values = torch.from_numpy(values_BLE)

    def __len__(self) -> int:
        return len(self._values)

    def batch(self, rows: NDArray[np.int64]) -> Features:
        """Features of some rows; every item is there, and none is padded."""
        features = self._values[torch.from_numpy(rows)]
        return Features(features, torch.ones(features.shape[:2], dtype=torch.bool))


class RandomEncoder:
    """A frozen encoder of one modality: a random two-layer perceptron on what a feature vector sees of the factors.

    Args:
        seed: of its weights; another modality has another.
    """

    def __init__(self, sizes: FactorSizes, seed: int) -> None:
        generator = np.random.default_rng(seed)
        inputs = sizes.factors + sizes.clutter
        self._sizes = sizes
        self._first = generator.standard_normal((inputs, sizes.hidden)) * (2 / inputs) ** 0.5
        self._bias = generator.standard_normal(sizes.hidden) * 0.5
        self._second = generator.standard_normal((sizes.hidden, sizes.feature_dim)) / sizes.hidden**0.5

    def features(self, factors_BF: Doubles, generator: np.random.Generator) -> NDArray[np.float32]:
        """Encode items to features, (B, L, E); ``generator`` draws visibility and noise."""
        shape = (len(factors_BF), self._sizes.length, self._sizes.factors)
        visible = generator.random(shape) < self._sizes.visibility
        seen = visible * (factors_BF[:, None] + self._sizes.noise * generator.standard_normal(shape))
        clutter = generator.standard_normal((*shape[:2], self._sizes.clutter))
        hidden = np.tanh(np.concatenate([seen, clutter], axis=2) @ self._first + self._bias)
        values: NDArray[np.float32] = (hidden @ self._second).astype(np.float32)
        return values


def draw_factors(sizes: FactorSizes, items: int, generator: np.random.Generator) -> Factors:
    """Independent Gaussian factors of ``items`` items."""
    deviations = np.sqrt(sizes.variances()[: sizes.shared])
    shared = generator.standard_normal((items, sizes.shared)) * deviations
    return Factors(shared, {m: generator.standard_normal((items, sizes.private)) for m in MODALITIES})


def synthetic_split(sizes: FactorSizes, seed: int, name: str, items: int) -> SyntheticSplit:
    """Items of one split; the encoders depend on the seed alone, so that all splits share them."""
    factors = draw_factors(sizes, items, np.random.default_rng(derive_seed(seed, "factors", name)))
    features = {
        m: InMemoryFeatures(
            RandomEncoder(sizes, derive_seed(seed, "encoder", m)).features(
                factors.of(m), np.random.default_rng(derive_seed(seed, "features", name, m))
            )
        )
        for m in MODALITIES
    }
    return SyntheticSplit(factors, features)
