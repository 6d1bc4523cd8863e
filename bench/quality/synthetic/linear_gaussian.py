"""The linear-Gaussian twin: pairs whose shared directions, and their order, are known in closed form.

Of an item, modality m shows ``y_m = A_m c + B_m u_m`` in each of L feature vectors, with fresh noise in each; c and u_m
are independent standard normal, the columns of A_m fall in size. All that the features say of the item is their mean,
so the canonical correlations of the means are those of the pair (Hotelling 1936), and no linear map of a modality
finds a direction that is shared more than the first.

Shapes: B items, L feature vectors, E feature dimension, C shared and P private factors, J canonical directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.quality.probes import Doubles
from bench.quality.synthetic.data import MODALITIES, InMemoryFeatures
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.model.head.nested_dropout import derive_seed


@dataclass(frozen=True)
class LinearSizes:
    """Numbers of factors, and the noise in which they are seen."""

    shared: int = 12
    private: int = 4
    importance: float = 0.8
    """Amplitude of each shared factor over that of the one before."""
    length: int = 4
    feature_dim: int = 32
    noise: float = 1.0
    """Standard deviation in each number of each feature vector; the private factors' amplitude is 1."""


@dataclass(frozen=True)
class Canonical:
    """The shared directions of a pair, the most correlated first."""

    correlations_J: Doubles
    directions: Mapping[str, Doubles]
    """Modality to (E, J): ``mean feature @ directions`` has unit variance and correlates with the other's."""


class LinearPairs:
    """One draw of the maps.

    Args:
        seed: of the maps; splits share it.
    """

    def __init__(self, sizes: LinearSizes, seed: int) -> None:
        self._sizes = sizes
        self._seed = seed
        amplitudes = np.concatenate([sizes.importance ** np.arange(sizes.shared), np.ones(sizes.private)])
        self._maps = {}
        for modality in MODALITIES:
            generator = np.random.default_rng(derive_seed(seed, "map", modality))
            square = generator.standard_normal((sizes.feature_dim, sizes.feature_dim))
            orthogonal = np.linalg.qr(square)[0][:, : sizes.shared + sizes.private]
            # Not orthonormal: then the canonical directions would be the factors themselves.
            mixing = np.eye(len(amplitudes)) + 0.3 * generator.standard_normal((len(amplitudes), len(amplitudes)))
            self._maps[modality] = 2 * orthogonal @ mixing @ np.diag(amplitudes)

    def canonical(self) -> Canonical:
        """The canonical correlations and directions, from the covariances."""
        shared = self._sizes.shared
        noise = self._sizes.noise**2 / self._sizes.length
        whitening = {}
        for modality, map_EF in self._maps.items():
            values, vectors = np.linalg.eigh(map_EF @ map_EF.T + noise * np.eye(len(map_EF)))
            whitening[modality] = vectors @ np.diag(values**-0.5) @ vectors.T
        one, two = MODALITIES
        cross = self._maps[one][:, :shared] @ self._maps[two][:, :shared].T
        u, correlations, vt = np.linalg.svd(whitening[one] @ cross @ whitening[two])
        directions = {one: whitening[one] @ u[:, :shared], two: whitening[two] @ vt.T[:, :shared]}
        return Canonical(correlations[:shared], directions)

    def draw(self, name: str, items: int) -> LinearSplit:
        """Items of one split."""
        sizes = self._sizes
        generator = np.random.default_rng(derive_seed(self._seed, "items", name))
        shared = generator.standard_normal((items, sizes.shared))
        features = {}
        for modality, map_EF in self._maps.items():
            factors = np.concatenate([shared, generator.standard_normal((items, sizes.private))], axis=1)
            noise = generator.standard_normal((items, sizes.length, sizes.feature_dim)) * sizes.noise
            features[modality] = (factors @ map_EF.T)[:, None] + noise
        return LinearSplit(features)


@dataclass(frozen=True)
class LinearSplit:
    """Items of both modalities, row i of each belonging together."""

    values: Mapping[str, Doubles]
    """Modality to (B, L, E)."""

    @property
    def features(self) -> dict[str, InMemoryFeatures]:
        """Features as sources for training."""
        return {m: InMemoryFeatures(v.astype(np.float32)) for m, v in self.values.items()}

    def variates(self, canonical: Canonical, modality: str) -> Doubles:
        """True canonical variates of the items, (B, J)."""
        variates: Doubles = self.values[modality].mean(axis=1) @ canonical.directions[modality]
        return variates

    def split(self, name: str) -> Split:
        """The same as a split of pairs."""
        rows = np.arange(len(next(iter(self.values.values()))))
        items = {m: Items(range(len(rows)), rows, np.ones(len(rows), dtype=bool)) for m in self.values}
        return Split(name, tuple(map(str, rows)), items, np.zeros(len(rows), dtype=bool))
