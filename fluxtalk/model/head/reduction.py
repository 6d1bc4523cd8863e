"""Reduction of frozen features before the head reads them: window pooling and PCA.

Training may store features reduced; serving then reduces them by the same module, between encoder and head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxtalk.artifacts.files import canonical_json
from fluxtalk.config import StrictConfig, require
from fluxtalk.errors import DataError
from fluxtalk.model.encoders import Features


@dataclass(frozen=True)
class ReductionConfig(StrictConfig):
    """Reduction of one modality's features; the defaults keep them as they are."""

    dim: int
    """Dimension of the encoder's features."""
    pool: int = 1
    """Consecutive feature vectors that become one, their mean; 1 is off."""
    pca: int = 0
    """Principal components that are kept; 0 is off."""

    def __post_init__(self) -> None:
        require(self.dim >= 1, f"The feature dimension of a reduction is at least 1; got {self.dim}.")
        require(self.pool >= 1, f"Pooling takes 1 feature vector or more at a time; got {self.pool}.")
        require(
            0 <= self.pca <= self.dim,
            f"PCA keeps 1 to {self.dim} components of these features (0: off); got {self.pca}.",
        )


class FeatureReduction(nn.Module):
    """Mean over windows of consecutive feature vectors, then projection on principal components.

    Both are linear, so their order changes nothing but the cost. No shape depends on the data: the module exports
    with dynamic batch and length.

    Args:
        config: window and number of components.
        mean: (dim,), as `principal_components` returns; None is zeros, to be loaded.
        components: (pca, dim), likewise.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, config: ReductionConfig, mean: Tensor | None = None, components: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        if config.pca:
            self.register_buffer("mean", torch.zeros(config.dim) if mean is None else mean)
            self.register_buffer(
                "components", torch.zeros(config.pca, config.dim) if components is None else components
            )

    @property
    def dim(self) -> int:
        """Dimension of the reduced features."""
        return self.config.pca or self.config.dim

    @property
    def identity(self) -> bool:
        """True if features stay as they are."""
        return self.config.pool == 1 and not self.config.pca

    def forward(self, features: Features) -> Features:
        """Reduce (B, L, config.dim) to (B, ceil(L / pool), dim); padding becomes 0, in rows of nothing else too."""
        values, mask = features
        if self.config.pool > 1:
            values, mask = _pool(values, mask, self.config.pool)
        if self.config.pca:
            values = F.linear(values - self.mean, self.components).masked_fill(~mask[..., None], 0.0)
        return Features(values, mask)

    def content_hash(self) -> str:
        """SHA-256 over what changes features: configuration, mean and components."""
        digest = hashlib.sha256(canonical_json(self.config.to_dict()).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _pool(values_BLD: Tensor, mask_BL: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Average each window's unmasked vectors: (B, W, D) and (B, W), True if a window has any."""
    windows = (values_BLD.shape[1] + size - 1) // size
    values_BLD = values_BLD.masked_fill(~mask_BL[..., None], 0.0)
    # Padded by a constant and cut to whole windows: an exported graph then serves every length.
    padded = F.pad(values_BLD, (0, 0, 0, size - 1))[:, : windows * size]
    present = F.pad(mask_BL.to(values_BLD.dtype), (0, size - 1))[:, : windows * size]
    count_BW = torch.unflatten(present, 1, (windows, size)).sum(dim=2)
    pooled_BWD = torch.unflatten(padded, 1, (windows, size)).sum(dim=2) / count_BW.clamp_min(1.0)[..., None]
    return pooled_BWD, count_BW > 0


def principal_components(batches: Iterable[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Compute the mean and the leading eigenvectors of the covariance of many vectors, read batch by batch.

    Each component's entry of the largest magnitude is positive, which fixes its sign.

    Args:
        batches: (n_i, D) each.
        count: number of components, at most D.

    Returns:
        mean (D,) and components (count, D) of descending variance, orthonormal, float32.

    Raises:
        DataError: there are too few vectors to tell that many directions.
    """
    total, square, number = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 0
    for batch in batches:
        # float64: the covariance is a difference of large sums.
        vectors = batch.detach().double().cpu()
        total = total + vectors.sum(dim=0)
        square = square + vectors.T @ vectors
        number += len(vectors)
    if number <= count:
        raise DataError(
            f"PCA to {count} dimensions needs more than {count} feature vectors; the training split gave {number}: "
            "keep fewer dimensions."
        )
    mean = total / number
    _, vectors = torch.linalg.eigh(square / number - torch.outer(mean, mean))
    components = vectors.T.flip(0)[:count]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return mean.float(), (components * largest.sign()).float().contiguous()
