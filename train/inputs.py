"""Inputs of a run: frozen encoders, data, and the features between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fluxtalk.artifacts.run import RunDescription, RunFolder, read_description
from fluxtalk.config import HeadConfig
from fluxtalk.console import Log
from fluxtalk.datasets import PairDataset, default_cache_dir
from fluxtalk.datasets.bad_items import BadItemPolicy, read_report
from fluxtalk.datasets.left_out import leave_out
from fluxtalk.errors import CheckpointError
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.model.checkpoints.trained_run import find_data, find_stage1
from fluxtalk.model.head.reduction import FeatureReduction
from fluxtalk.model.process_group import ProcessGroup
from fluxtalk.preprocess import ImagePreprocessor
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.features.admit import admit, splits_with_items
from fluxtalk.train.features.encoding import read_encoders_and_data
from fluxtalk.train.features.sources import (
    CacheOptions,
    FeatureSource,
    feature_sources,
    fitted_reductions,
    reduced_dims,
)
from fluxtalk.train.loop.sampler import PairSampler


@dataclass(frozen=True)
class Inputs:
    """Frozen encoders, the data set that they encode, and the options of the features between them."""

    stage1: Stage1
    dataset: PairDataset
    cache_dir: Path
    encode: str
    device: torch.device
    options: CacheOptions
    reductions: Mapping[str, FeatureReduction]
    """Modality to the reduction of its features; modalities that stay as they are, are absent."""

    def sources(
        self, split: str, group: ProcessGroup | None = None, say: Callable[[str], None] = lambda _: None
    ) -> dict[str, FeatureSource]:
        """Open the features of one split; a cache is encoded on first use.

        Args:
            group: the processes that encode together, all of which call this; None encodes alone.
            say: receives a line about every cache that is encoded.
        """
        return feature_sources(
            self.stage1,
            self.dataset,
            split,
            self.encode,
            self.cache_dir,
            self.device,
            self.options,
            self.reductions,
            group,
            say,
        )

    def admitted(self, policy: BadItemPolicy, group: ProcessGroup, say: Log, split: str | None = None) -> Inputs:
        """Encode everything, and leave out the items that cannot be used, if the policy allows.

        Args:
            split: the only split that is needed; None encodes all.

        Raises:
            DataError: the policy refuses them; or as for `sources`.
        """
        splits = splits_with_items(self.dataset) if split is None else [self.dataset.split(split).name]
        dataset = admit(
            self.stage1,
            self.dataset,
            splits,
            self.encode,
            self.cache_dir,
            self.device,
            self.options,
            self.reductions,
            group,
            say,
            policy,
        )
        return replace(self, dataset=dataset)

    def as_recorded(self, folder: RunFolder) -> Inputs:
        """Leave out what a run on the same data has left out.

        Raises:
            ArtifactError: the run's record of them is malformed.
        """
        if not folder.bad_items.is_file():
            return self
        data_hash, bad = read_report(folder.bad_items)
        return replace(self, dataset=leave_out(self.dataset, bad)) if data_hash == self.dataset.content_hash else self

    @property
    def images(self) -> set[str]:
        """Modalities that are images."""
        return {m for m, part in self.stage1.modalities.items() if isinstance(part.preprocess, ImagePreprocessor)}

    def head_config(self, config: TrainConfig) -> HeadConfig:
        """Configure the head that fits these features."""
        shared = {name: getattr(config, name) for name in HeadConfig.__dataclass_fields__ if name != "dims"}
        return HeadConfig(dims=reduced_dims(self.stage1, self.reductions), **shared)


def read_inputs(
    config: TrainConfig,
    group: ProcessGroup,
    device: torch.device,
    reductions: Mapping[str, FeatureReduction] | None = None,
) -> Inputs:
    """Load stage 1 and the data set, the first process before the others.

    Args:
        reductions: those of a head that exists already; other modalities' are fitted as the options ask.

    Raises:
        CheckpointError: stage 1 cannot be used.
        UsageError: no data set is named, or it lacks a modality that stage 1 encodes.
        DataError: the data set cannot be used.
    """
    cache_dir = default_cache_dir(config.cache_dir)
    stage1, dataset = read_encoders_and_data(
        Path(config.stage1_checkpoint), config.data, cache_dir, group, config.bad_items_limit
    )
    options = CacheOptions(config.feature_dtype, config.feature_pca, config.feature_pool)
    known = dict(reductions or {})
    new = {m: part for m, part in stage1.modalities.items() if m not in known}
    fitted = fitted_reductions(replace(stage1, modalities=new), dataset, options, cache_dir, device, group)
    return Inputs(stage1, dataset, cache_dir, config.encode, device, options, known | fitted)


def config_of_run(
    run: RunDescription, stage1_checkpoint: Path | None, data: str | None, cache_dir: str | None
) -> TrainConfig:
    """Read the options of a finished run, with the present paths of stage 1 and the data set.

    Args:
        stage1_checkpoint: path of stage 1, if the run does not know it.
        data: another data set than the run's.
        cache_dir: another cache folder than the run's.

    Raises:
        CheckpointError: stage 1 is missing.
        DataError: the data set is missing.
    """
    options = dict(run.options)
    options["stage1_checkpoint"] = str(stage1_checkpoint or find_stage1(run))
    options["data"] = data or find_data(run)
    options["cache_dir"] = cache_dir or options["cache_dir"]
    return TrainConfig.from_dict(options)


def inputs_of_run(
    root: Path, stage1_checkpoint: Path | None, cache_dir: str | None, group: ProcessGroup, device: torch.device
) -> tuple[TrainConfig, Inputs]:
    """Open the options and inputs of a finished run.

    Args:
        stage1_checkpoint: path of stage 1 now, if it was moved.
        cache_dir: another cache folder than the run's.

    Raises:
        ArtifactError: the folder is not a run, or stage 1 is missing or not the one that it was trained on.
        DataError: its data set is missing, or cannot be used.
    """
    run = read_description(root)
    config = config_of_run(run, stage1_checkpoint, None, cache_dir)
    inputs = read_inputs(config, group, device).as_recorded(run.folder)
    if inputs.stage1.content_hash() != run.info.stage1_hash:
        raise CheckpointError(
            f"{config.stage1_checkpoint} is not the stage 1 checkpoint that {root} was trained on; "
            "name that one with --stage1-checkpoint."
        )
    return config, inputs


def build_sampler(config: TrainConfig, inputs: Inputs, group: ProcessGroup) -> PairSampler:
    """Build the sampler of the training split that the options ask for."""
    return PairSampler(
        inputs.dataset.split("train"),
        config.batch_size,
        group.size,
        group.rank,
        config.seed,
        config.accum_steps,
        config.items_per_id,
    )
