"""Fitting feature reductions on the training split, once per encoder, data set and setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fluxtalk.artifacts.cache import reduction_file
from fluxtalk.artifacts.files import atomic_file, canonical_json, hash_json
from fluxtalk.console import progress
from fluxtalk.datasets.pairs import PairDataset
from fluxtalk.errors import ArtifactError
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.model.head.reduction import FeatureReduction, ReductionConfig, principal_components
from fluxtalk.model.process_group import ProcessGroup
from fluxtalk.train.features.encoding import Encoding
from fluxtalk.train.features.options import CacheOptions

FORMAT = "fluxtalk.reduction"
_SCHEMA = 1
_SAMPLE_ITEMS = 2048
_BATCH = 128


def fitted_reductions(
    stage1: Stage1,
    dataset: PairDataset,
    options: CacheOptions,
    cache_dir: Path,
    device: torch.device,
    group: ProcessGroup,
) -> dict[str, FeatureReduction]:
    """Fit the reductions that `options` ask for.

    PCA is fitted by the first process on at most 2,048 random items of the training split, the same in every run,
    and kept in ``cache_dir``, which all of ``group`` share.

    Returns:
        Modality to its reduction, on the CPU; modalities that stay as they are, are absent.

    Raises:
        DataError: the training split is empty or has too few feature vectors, or the encoder fails.
        ArtifactError: a reduction that was fitted earlier is damaged.
    """
    reductions = {}
    for modality, part in stage1.modalities.items():
        dim = part.spec.dim
        config = ReductionConfig(dim, options.pool, options.pca if options.pca < dim else 0)
        if config.pca:
            reductions[modality] = _fitted(stage1, dataset, modality, config, cache_dir, device, group)
        elif config.pool > 1:
            reductions[modality] = FeatureReduction(config)
    return reductions


def reduced_dims(stage1: Stage1, reductions: Mapping[str, FeatureReduction]) -> dict[str, int]:
    """Return, by modality, the dimension of the features that the head reads."""
    return {m: reductions[m].dim if m in reductions else part.spec.dim for m, part in stage1.modalities.items()}


def _fitted(
    stage1: Stage1,
    dataset: PairDataset,
    modality: str,
    config: ReductionConfig,
    cache_dir: Path,
    device: torch.device,
    group: ProcessGroup,
) -> FeatureReduction:
    key = hash_json(
        {
            "schema": _SCHEMA,
            "encoder": stage1.modalities[modality].content_hash(),
            "data": dataset.whole.content_hash,
            "modality": modality,
            "config": config.to_dict(),
            "items": _SAMPLE_ITEMS,
        }
    )
    path = reduction_file(cache_dir, modality, config.pca, key)
    if group.rank == 0 and not path.is_file():
        pooled = FeatureReduction(ReductionConfig(config.dim, config.pool))
        encoding = Encoding.of(stage1, dataset.whole.split("train"), modality, device, pooled)
        reduction = FeatureReduction(config, *principal_components(_sampled_vectors(encoding), config.pca))
        _save(reduction, key, path)
    group.all_reduce_sum(torch.zeros(1))  # the first process has left the file
    return _load(config, key, path)


def _sampled_vectors(encoding: Encoding) -> Iterator[Tensor]:
    """Yield the feature vectors of random items, batch by batch."""
    count = len(encoding.items)
    rows = np.sort(np.random.default_rng(0).permutation(count)[:_SAMPLE_ITEMS])
    starts = range(0, len(rows), _BATCH)
    for start in progress(starts, f"fitting PCA of {encoding.modality}", unit="batch"):
        batch = rows[start : start + _BATCH].tolist()
        decoded = [(row, array) for row in batch if not isinstance(array := encoding.try_decoding(row), str)]
        for _, features in encoding.encode_usable(decoded, {}):
            yield features.features_BLD[features.mask_BL]


def _save(reduction: FeatureReduction, key: str, path: Path) -> None:
    metadata = {
        "format": FORMAT,
        "key": key,
        "config": canonical_json(reduction.config.to_dict()),
        "content_hash": reduction.content_hash(),
    }
    with atomic_file(path) as temporary:
        save_file(dict(reduction.state_dict()), temporary, metadata=metadata)


def _load(config: ReductionConfig, key: str, path: Path) -> FeatureReduction:
    reduction = FeatureReduction(config)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            reduction.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
        intact = metadata["content_hash"] == reduction.content_hash() and metadata["format"] == FORMAT
    except (SafetensorError, OSError, KeyError, RuntimeError):
        intact = False
    if not intact:
        raise ArtifactError(f"The fitted reduction {path} is damaged or foreign; remove it to fit it again.")
    if metadata["key"] != key:
        raise ArtifactError(
            f"The fitted reduction {path} belongs to another encoder, data set or setting; remove it to fit it again."
        )
    return reduction
