"""Any head trained as a run was: the same features, batches, loss, optimizer, schedule and choice by validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from fluxtalk.artifacts.files import Identity, write_json
from fluxtalk.artifacts.run import RunFolder, read_description
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.head.baselines import MeanPoolHead
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import join_process_group
from fluxtalk.train.engine import Trainer
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.inputs import Inputs, build_sampler, inputs_of_run
from fluxtalk.train.records.log import RunLog
from fluxtalk.train.records.run_folder import lock_run_folder
from fluxtalk.train.results.score import score_head
from fluxtalk.train.sweep import Sweep, SweepStoppedError, before_sweep


def measure_baseline(
    root: Path,
    projection: str,
    stage1_checkpoint: Path | None,
    cache_dir: str | None,
    device: str,
    sweep: str | None = None,
) -> dict[str, Any]:
    """Train a baseline on a finished run's features and write its test scores beside the run's.

    Args:
        root: OUTPUT_DIR/LOG_NAME of the run.
        projection: ``linear`` or ``mlp``.
        stage1_checkpoint: path of stage 1 now, if it was moved.
        cache_dir: another cache folder than the run's.
        sweep: search before, with the run's budget; None searches as the run did, from the options that it began with.

    Returns:
        The record that was written to `RunFolder.baseline_results`.

    Raises:
        ArtifactError: the folder is not a run, or stage 1 is missing or another.
        DataError: the data set is missing, cannot be used, or has no test split.
        SystemExit: as for `train_head`.
    """
    run = read_description(root)
    with join_process_group(device) as (group, torch_device):
        config, inputs = inputs_of_run(root, stage1_checkpoint, cache_dir, group, torch_device)
        config = dataclasses.replace(config, sweep=sweep or config.sweep)
        if config.sweep != "none":
            config = before_sweep(config, RunFolder(root).sweep)
        scores = train_baseline(config, inputs, RunFolder(root).baseline(projection), projection)
    named = {"baseline": f"mean-pool + {projection}", "split": "test", **inputs.dataset.told()}
    record = {**run.identity.fields(), **named, **scores}
    write_json(RunFolder(root).baseline_results(projection), record)
    return record


def train_baseline(config: TrainConfig, inputs: Inputs, folder: RunFolder, projection: str) -> dict[str, Any]:
    """Train a mean-pool head with a run's options: its `retrieval` scores on the test split.

    Features are not dropped unless a sweep finds that they should be: that may weaken so small a head.

    Args:
        folder: an empty or new one, for the baseline's log and checkpoints.
        projection: ``linear`` or ``mlp``.
    """
    one = dataclasses.replace(
        config,
        num_register_tokens=1,
        num_overlapping_tokens=1,
        complementary_objective="none",
        aggregation="mean",
        mean_path="none",
        regions="",
        token_dim=0,
        summary_registers=1,
        nested_dims="",
        k_values="",
        feature_dropout=0.0,
        token_dropout=0.0,
        init_from=None,
        freeze_registers=False,
    )
    train = inputs.sources("train")

    def head_of(tried: TrainConfig) -> TokenHead:
        torch.manual_seed(tried.seed)
        return MeanPoolHead(inputs.head_config(tried), tried.seed, projection)

    if one.sweep != "none":
        identity = Identity(config.experiment_id, config.implementation)
        with lock_run_folder(folder), closing(RunLog(identity, folder)) as log:
            sweep = Sweep(one, folder.sweep)
            validation, split = inputs.sources("validation"), inputs.dataset.split("validation")
            try:
                sweep.run(
                    lambda tried: _trainer(head_of(tried), tried, inputs, train),
                    lambda head: score_head(head, validation, split),
                    identity,
                    log.line,
                )
            except SweepStoppedError as stopped:
                raise SystemExit(stopped.exit_code) from None
        one = sweep.result()
    return train_head(head_of(one), one, inputs, folder, train)


def _trainer(head: TokenHead, config: TrainConfig, inputs: Inputs, train: Mapping[str, FeatureSource]) -> Trainer:
    group = SingleProcess()
    identity = Identity(config.experiment_id, config.implementation)
    sampler = build_sampler(config, inputs, group)
    return Trainer(config, head.to(inputs.device), train, sampler, group, inputs.stage1.content_hash(), identity)


def train_head(
    head: TokenHead,
    config: TrainConfig,
    inputs: Inputs,
    folder: RunFolder,
    train: Mapping[str, FeatureSource] | None = None,
) -> dict[str, Any]:
    """Train a head in this process; leave it with its best weights, and score those on the test split.

    Args:
        train: the training split's features, if they are open already.

    Raises:
        SystemExit: a signal ended the training; the code is 128 + its number, as of `fluxtalk-train`.
    """
    identity = Identity(config.experiment_id, config.implementation)
    trainer = _trainer(head, config, inputs, inputs.sources("train") if train is None else train)
    validation = inputs.dataset.split("validation")
    sources = inputs.sources("validation")
    with lock_run_folder(folder), closing(RunLog(identity, folder)) as log:
        if not trainer.run(folder, log, lambda tried: score_head(tried, sources, validation)):
            raise SystemExit(128 + (trainer.stop.number or 15))
    head.load_state_dict(dict(load_head(folder.best).weights))
    test = inputs.dataset.split("test")
    return score_head(head, inputs.sources("test"), test)
