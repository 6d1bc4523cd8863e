"""Options of a feature cache; torch-free, so that a command line can name the choices."""

from __future__ import annotations

from dataclasses import dataclass

from fluxtalk.config import StrictConfig, require
from fluxtalk.train.config import FEATURE_DTYPES


@dataclass(frozen=True)
class CacheOptions(StrictConfig):
    """Options that make a feature cache smaller. `pca` and `pool` change what the head reads, in serving too."""

    dtype: str = "fp16"
    """`fp16`, or `int8`: symmetric, with one float32 scale per feature vector."""
    pca: int = 0
    """Principal components that are kept, fitted on the training split; 0 is off. A modality whose features have no
    more dimensions than that keeps them all."""
    pool: int = 1
    """Consecutive feature vectors that become one, their mean; 1 is off."""
    verify: bool = True
    """Compare every shard with its checksum when a cache is opened, at about 1 GB/s; sizes are always compared."""

    def __post_init__(self) -> None:
        require(
            self.dtype in FEATURE_DTYPES,
            f"Cached features are stored as {' or '.join(FEATURE_DTYPES)}; got {self.dtype!r}.",
        )
        require(self.pca >= 0, f"PCA keeps 1 component of the features or more (0: off); got {self.pca}.")
        require(self.pool >= 1, f"Pooling takes 1 feature vector or more at a time; got {self.pool}.")
