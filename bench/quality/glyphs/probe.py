"""Type-face probes: how well family, weight and slant of a glyph can be read off a vector by a linear classifier."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fluxtalk.arrays import Floats
from fluxtalk.datasets.pairs import Split
from fluxtalk.errors import DataError
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.tokens import concatenate, l2_normalize, pool
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.results.score import all_tokens

FACTORS = ("family", "weight", "slant")
"""Factors that only an image shows of a glyph, named as the data set's labels."""
MODALITY = "image"
_BATCH = 512
_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeData:
    """The images that probes are fitted to and scored on, in all faces: characters of one never occur in the other."""

    train: FeatureSource
    test: FeatureSource
    train_rows: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    train_labels: Mapping[str, NDArray[np.int64]]
    test_labels: Mapping[str, NDArray[np.int64]]


def probe_data(splits: tuple[Split, Split], sources: tuple[FeatureSource, FeatureSource], images: int) -> ProbeData:
    """Training and test images to probe.

    Args:
        images: how many training images to fit, drawn once and the same for all; all of them if there are fewer.
    """
    parts = [split.items[MODALITY] for split in splits]
    drawn = np.random.default_rng(0).permutation(len(parts[0]))[:images]
    rows = [np.sort(drawn), np.arange(len(parts[1]))]
    labels = [{f: part.labels[f][r] for f in FACTORS} for part, r in zip(parts, rows, strict=True)]
    return ProbeData(*sources, rows[0], rows[1], labels[0], labels[1])


def accuracy(train: Floats, test: Floats, data: ProbeData) -> dict[str, float]:
    """The share of test images whose factor is read right, by factor.

    Multinomial logistic regression on standardized numbers, scikit-learn's default regularization.

    Raises:
        DataError: the fit did not converge.
    """
    found = {}
    for factor in FACTORS:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS, tol=1e-3))
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                model.fit(train, data.train_labels[factor])
            except ConvergenceWarning:
                raise DataError(
                    f"The probe of {factor} did not converge in {_ITERATIONS} iterations; "
                    "its vectors hold numbers of very different size, or NaN: look at the head."
                ) from None
        found[factor] = round(float(model.score(test, data.test_labels[factor])), 5)
    return found


def majority(data: ProbeData) -> dict[str, float]:
    """Accuracy of always answering the commonest class of the training images, by factor."""
    found = {}
    for factor in FACTORS:
        commonest = np.bincount(data.train_labels[factor]).argmax()
        found[factor] = round(float((data.test_labels[factor] == commonest).mean()), 5)
    return found


def shared_vectors(head: TokenHead, data: ProbeData) -> tuple[Floats, Floats]:
    """Vectors of training and test images as the head compares them with the other modality, at all overlapping tokens.

    With late interaction, the tokens side by side.
    """
    config = head.config
    combine = pool if config.aggregation == "mean" else concatenate
    train, test = _tokens(head, data)
    return combine(train, config.num_overlapping_tokens), combine(test, config.num_overlapping_tokens)


def complementary_vectors(head: TokenHead, data: ProbeData) -> tuple[Floats, Floats]:
    """The complementary tokens, each of length 1 and side by side, of training and test images."""
    first = head.config.num_overlapping_tokens
    train, test = (l2_normalize(tokens[:, first:]) for tokens in _tokens(head, data))
    return train.reshape(len(train), -1), test.reshape(len(test), -1)


def raw_vectors(data: ProbeData) -> tuple[Floats, Floats]:
    """The frozen features themselves, averaged as the mean-pool heads do: what all heads read."""
    return _mean_feature(data.train, data.train_rows), _mean_feature(data.test, data.test_rows)


def _tokens(head: TokenHead, data: ProbeData) -> tuple[Floats, Floats]:
    return (
        all_tokens(head, MODALITY, data.train, data.train_rows),
        all_tokens(head, MODALITY, data.test, data.test_rows),
    )


def _mean_feature(source: FeatureSource, rows: NDArray[np.int64]) -> Floats:
    parts = []
    for start in range(0, len(rows), _BATCH):
        features, mask = source.batch(rows[start : start + _BATCH])
        normalized = F.layer_norm(features, features.shape[-1:]) * mask[..., None]
        parts.append((normalized.sum(dim=1) / mask.sum(dim=1, keepdim=True)).to(torch.float32).cpu().numpy())
    return np.concatenate(parts)
