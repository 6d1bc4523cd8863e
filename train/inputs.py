"""What a run reads: frozen encoders, data, and the features between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fluxtalk.config import HeadConfig
from fluxtalk.datasets import PairDataset, default_cache_dir, load_dataset
from fluxtalk.datasets.data_paths import first_existing
from fluxtalk.errors import CheckpointError, DataError, UsageError
from fluxtalk.model.checkpoints.run import find_data, find_stage1, read_run_config
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1
from fluxtalk.model.head.reduction import FeatureReduction
from fluxtalk.model.process_group import World
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import wait_for_first
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
    """What a run reads: the frozen encoders, the data they encode, and how features reach the head."""

    stage1: Stage1
    dataset: PairDataset
    cache_dir: Path
    encode: str
    device: torch.device
    options: CacheOptions
    reductions: Mapping[str, FeatureReduction]
    """Modality to what reduces its features; a modality that stays as it is, is absent."""

    def sources(
        self, split: str, world: World | None = None, say: Callable[[str], None] = lambda _: None
    ) -> dict[str, FeatureSource]:
        """Features of one split, encoded on first use where a cache is wanted.

        Args:
            world: the processes that encode together, all of which call this; None encodes alone.
            say: told what is encoded.
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
            world,
            say,
        )

    def head_config(self, config: TrainConfig) -> HeadConfig:
        """The head that fits these features."""
        shared = {name: getattr(config, name) for name in HeadConfig.__dataclass_fields__ if name != "dims"}
        return HeadConfig(dims=reduced_dims(self.stage1, self.reductions), **shared)


def read_inputs(
    config: TrainConfig, world: World, device: torch.device, reductions: Mapping[str, FeatureReduction] | None = None
) -> Inputs:
    """Load stage 1 and the data set, the first process before the others.

    Args:
        reductions: of a head that exists already; those of other modalities are fitted as the options ask.

    Raises:
        CheckpointError: stage 1 cannot be used.
        UsageError: no data set is named, or it lacks a modality that stage 1 encodes.
        DataError: the data set cannot be used.
    """
    cache_dir = default_cache_dir(config.cache_dir)
    stage1, dataset = read_encoders_and_data(Path(config.stage1_checkpoint), config.data, cache_dir, world)
    options = CacheOptions(config.feature_dtype, config.feature_pca, config.feature_pool)
    known = dict(reductions or {})
    new = {m: part for m, part in stage1.modalities.items() if m not in known}
    fitted = fitted_reductions(replace(stage1, modalities=new), dataset, options, cache_dir, device, world)
    return Inputs(stage1, dataset, cache_dir, config.encode, device, options, known | fitted)


def read_encoders_and_data(
    stage1_checkpoint: Path, data: str | None, cache_dir: Path, world: World
) -> tuple[Stage1, PairDataset]:
    """Frozen encoders and a data set that has items for all of them.

    Args:
        data: data set; None takes the one that stage 1 names.

    Raises:
        CheckpointError: stage 1 cannot be used.
        UsageError: no data set is named, or it lacks a modality that stage 1 encodes.
        DataError: the data set cannot be used.
    """
    stage1 = load_stage1(stage1_checkpoint)
    name = data or stage1.data
    if name is None:
        raise UsageError(f"{stage1_checkpoint} names no data set; say which with --data.")
    if data is None and first_existing([name]) is None:
        raise DataError(
            f"The data set {name}, which is `data` of {stage1_checkpoint}, does not exist; "
            "put it there, or say with --data where it is."
        )
    with wait_for_first(world):
        dataset = load_dataset(name, cache_dir, stage1.kinds)
    missing = sorted(set(stage1.modalities) - set(dataset.modalities))
    if missing:
        raise UsageError(
            f"The stage 1 checkpoint encodes {', '.join(stage1.modalities)}, "
            f"but {name} has {', '.join(dataset.modalities)}: nothing for {', '.join(missing)}; "
            "rename the columns or choose other --data."
        )
    return stage1, dataset


def config_of_run(
    root: Path, content: dict[str, Any], stage1_checkpoint: Path | None, data: str | None, cache_dir: str | None
) -> TrainConfig:
    """The options of a finished run, with stage 1 and the data set where they lie now.

    Args:
        content: of its run.json.
        stage1_checkpoint: where stage 1 lies, if the run does not know.
        data: another data set than the run's.
        cache_dir: another cache folder than the run's.

    Raises:
        CheckpointError: stage 1 is not to be found.
        DataError: the data set is not to be found.
    """
    options = dict(content["options"])
    options["stage1_checkpoint"] = str(stage1_checkpoint or find_stage1(root, content))
    options["data"] = data or find_data(root, content)
    options["cache_dir"] = cache_dir or options["cache_dir"]
    return TrainConfig.from_dict(options)


def inputs_of_run(
    root: Path, stage1_checkpoint: Path | None, cache_dir: str | None, world: World, device: torch.device
) -> tuple[TrainConfig, Inputs]:
    """The options of a finished run and what it read, for a second look at the same data.

    Args:
        stage1_checkpoint: where stage 1 lies now, if it was moved.
        cache_dir: another cache folder than the run's.

    Raises:
        ArtifactError: the folder is no run, or stage 1 is not to be found or not the one it was trained on.
        DataError: its data set is not to be found, or cannot be used.
    """
    content = read_run_config(root)
    config = config_of_run(root, content, stage1_checkpoint, None, cache_dir)
    inputs = read_inputs(config, world, device)
    if inputs.stage1.content_hash() != content["facts"]["stage1_hash"]:
        raise CheckpointError(
            f"{config.stage1_checkpoint} is not the stage 1 checkpoint that {root} was trained on; "
            "name that one with --stage1_checkpoint."
        )
    return config, inputs


def build_sampler(config: TrainConfig, inputs: Inputs, world: World) -> PairSampler:
    """The sampler of the training split that the options ask for."""
    return PairSampler(
        inputs.dataset.split("train"),
        config.batch_size,
        world.size,
        world.rank,
        config.seed,
        config.accum_steps,
        config.items_per_id,
    )
