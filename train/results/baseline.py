"""Any head trained as a run was: the same features, batches, loss, optimizer, schedule and choice by validation."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import Any

import torch

from fluxtalk.artifacts.files import Identity
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.head.baselines import MeanPoolHead
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.inputs import Inputs, build_sampler
from fluxtalk.train.records.log import RunLog
from fluxtalk.train.records.run_folder import lock_run_folder
from fluxtalk.train.results.score import score_head


def train_baseline(config: TrainConfig, inputs: Inputs, folder: RunFolder, projection: str) -> dict[str, Any]:
    """Train a mean-pool head with a run's options: its `retrieval` scores on the test split.

    Features are not dropped, whatever the run did: that would only weaken so small a head.

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
        feature_dropout=0.0,
        token_dropout=0.0,
        init_from=None,
        freeze_registers=False,
    )
    torch.manual_seed(config.seed)
    head = MeanPoolHead(inputs.head_config(one), config.seed, projection)
    return train_head(head, one, inputs, folder)


def train_head(head: TokenHead, config: TrainConfig, inputs: Inputs, folder: RunFolder) -> dict[str, Any]:
    """Train a head in this process; leave it with its best weights, and score those on the test split."""
    group = SingleProcess()
    sampler = build_sampler(config, inputs, group)
    identity = Identity(config.experiment_id, config.implementation)
    stage1_hash = inputs.stage1.content_hash()
    trainer = Trainer(config, head.to(inputs.device), inputs.sources("train"), sampler, group, stage1_hash, identity)
    validation = inputs.dataset.split("validation")
    sources = inputs.sources("validation")
    with lock_run_folder(folder), closing(RunLog(identity, folder)) as log:
        trainer.run(folder, log, lambda tried: score_head(tried, sources, validation))
    head.load_state_dict(dict(load_head(folder.best).weights))
    test = inputs.dataset.split("test")
    return score_head(head, inputs.sources("test"), test)
