"""Encoding a data set ahead of training, by the function that training uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fluxtalk.console import Log
from fluxtalk.datasets.bad_items import BadItemPolicy
from fluxtalk.model.process_group import ProcessGroup
from fluxtalk.train.features.admit import STRICT, admit, splits_with_items
from fluxtalk.train.features.encoding import read_encoders_and_data
from fluxtalk.train.features.options import CacheOptions
from fluxtalk.train.features.sources import CachedFeatures, feature_sources, fitted_reductions
from fluxtalk.train.features.space import cache_sizes, require_space


def prebuild(
    stage1_checkpoint: Path,
    data: str | None,
    splits: Sequence[str] | None,
    cache_dir: Path,
    options: CacheOptions,
    device: torch.device,
    group: ProcessGroup,
    say: Log,
    policy: BadItemPolicy = STRICT,
) -> dict[str, dict[str, CachedFeatures]]:
    """Build the caches of every modality of some splits, unless they exist, once they are known to fit on the disk.

    Bad items are dealt with when everything else is encoded; `bad_items_report` says where they are listed.

    Args:
        data: data set; None takes the one that stage 1 names.
        splits: by default every split that has items.

    Returns:
        Split to modality to its cache.

    Raises:
        CheckpointError: stage 1 cannot be used.
        UsageError: no data set is named, or it lacks a modality that stage 1 encodes.
        DataError: the data set cannot be used, has no such split, its features do not fit on the disk, or the policy
            refuses its bad items.
    """
    stage1, dataset = read_encoders_and_data(stage1_checkpoint, data, cache_dir, group, policy.limit)
    for note in dataset.notes:
        say(f"warning: {note}")
    chosen = [dataset.split(split).name for split in splits] if splits is not None else splits_with_items(dataset)
    reductions = fitted_reductions(stage1, dataset, options, cache_dir, device, group)
    if group.rank == 0:
        sizes = cache_sizes(stage1, dataset, chosen, cache_dir, options, reductions, device)
        require_space(sizes, cache_dir, options)
    dataset = admit(stage1, dataset, chosen, "cache", cache_dir, device, options, reductions, group, say, policy)
    caches: dict[str, dict[str, CachedFeatures]] = {split: {} for split in chosen}
    for split in chosen:
        sources = feature_sources(stage1, dataset, split, "cache", cache_dir, device, options, reductions, group, say)
        for modality, source in sources.items():
            assert isinstance(source, CachedFeatures)  # what `encode="cache"` gives
            manifest = source.manifest
            say(f"{split} {modality}: {len(source):,} items, {manifest.vectors:,} vectors of {manifest.dim}")
            caches[split][modality] = source
    return caches
