"""One training run from options to results.json: everything between the command line and the loop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fluxtalk.artifacts.files import Identity, git_revision, write_json
from fluxtalk.datasets.data_paths import with_absolute_path, with_relative_path
from fluxtalk.errors import CheckpointError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.process_group import World
from fluxtalk.scoring.retrieval import retrieval
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import process_world
from fluxtalk.train.engine import Trainer
from fluxtalk.train.init_from import begin_with, old_head
from fluxtalk.train.inputs import Inputs, build_sampler, read_inputs
from fluxtalk.train.loop.callbacks import Callback
from fluxtalk.train.records.log import RunLog
from fluxtalk.train.records.resume import record_resumption, require_same_run
from fluxtalk.train.records.run_folder import RunFolder, open_run, write_description
from fluxtalk.train.records.run_lock import only_writer
from fluxtalk.train.results.embeddings import counted_embeddings


@dataclass(frozen=True)
class FitResult:
    """What a run left."""

    folder: RunFolder
    finished: bool
    """Whether training reached its end; False after SIGTERM or SIGUSR1, with the checkpoint written."""
    exit_code: int
    """0, or 128 + the signal's number."""

    @property
    def scores(self) -> dict[str, Any] | None:
        """The content of results.json: the best head on the test split. None where nothing was scored."""
        if not self.folder.results.is_file():
            return None
        content: dict[str, Any] = json.loads(self.folder.results.read_text())
        return content


def fit(config: TrainConfig, resume: bool = False, callbacks: Sequence[Callback] = ()) -> FitResult:
    """Train to the end and score the best head once on the test split: `fluxtalk-train` from Python.

    Args:
        resume: continue the run from its last checkpoint.
        callbacks: hear of steps and validations.

    Raises:
        FluxTalkError: the options, the data, a file or the numbers make training impossible.
    """
    folder = open_run(config, resume)
    identity = Identity(config.experiment_id, config.implementation, git_revision=git_revision())
    with process_world(config.device) as (world, device), ExitStack() as held:
        main = world.rank == 0
        if resume and main:
            held.enter_context(only_writer(folder))
        begun = old_head(Path(config.init_from)) if config.init_from is not None else None
        inputs = read_inputs(config, world, device, begun.reductions if begun is not None else None)
        if resume:
            _require_same_run(folder, config, inputs, world)
        started = time.monotonic()
        # Before there is a folder to write to: what goes wrong here leaves nothing.
        say = RunLog(identity, None, active=main).line
        trainer = build_trainer(config, inputs, world, identity, say, callbacks=callbacks)
        validation_sources = inputs.sources("validation", world, say)
        if main and not resume:
            held.enter_context(only_writer(folder))
            open_run(config, resume)  # again: another training may have begun here since
        with closing(RunLog(identity, folder, active=main)) as log:
            _begin(trainer, inputs, folder, log, resume)
            validation = inputs.dataset.split("validation")
            finished = trainer.run(
                folder,
                log,
                lambda head: retrieval(counted_embeddings(head, validation_sources, validation), validation),
            )
            if not finished:
                return FitResult(folder, False, 128 + (trainer.stop.number or 15))
            if main:
                _score_test(folder, inputs, identity, log, round(time.monotonic() - started, 1))
            # A process that left early would tear down the group under the first one.
            world.total(torch.zeros(1))
    return FitResult(folder, True, 0)


def _begin(trainer: Trainer, inputs: Inputs, folder: RunFolder, log: RunLog, resume: bool) -> None:
    facts, main = _facts(inputs, trainer), trainer.world.rank == 0
    if resume:
        _resume(trainer, folder, log)
        if main:
            record_resumption(folder, trainer.config, facts, trainer.position.step)
    elif main:
        write_description(folder, trainer.config, trainer.identity, facts)
        trainer.save(folder)
    _announce(log, trainer, inputs)


def _announce(log: RunLog, trainer: Trainer, inputs: Inputs) -> None:
    trained = sum(p.numel() for p in trainer.head.parameters() if p.requires_grad)
    sampler = trainer.sampler
    log.line(
        f"training {trained:,} parameters on {inputs.dataset.name}: "
        f"{trainer.steps} steps of {sampler.global_batch} pairs, {trainer.world.size} process(es) on {inputs.device}"
    )
    for note in inputs.dataset.notes:
        log.line(f"warning: {note}")
    if sampler.global_batch < sampler.asked:
        log.line(
            f"warning: a step of {sampler.asked} rows was asked for, but the training split fills no more than "
            f"{sampler.global_batch}; a smaller --batch_size would say the same"
        )


def build_trainer(
    config: TrainConfig,
    inputs: Inputs,
    world: World,
    identity: Identity,
    say: Callable[[str], None] = lambda _: None,
    **parts: Any,
) -> Trainer:
    """The trainer of these options; ``parts`` are further arguments of `Trainer`."""
    sources = inputs.sources("train", world, say)
    sampler = build_sampler(config, inputs, world)
    torch.manual_seed(config.seed)
    head = RegisterTokenModule.from_config(inputs.head_config(config), config.seed)
    if config.init_from is not None:
        begin_with(head, inputs.stage1, Path(config.init_from), config.freeze_registers)
    head.to(inputs.device)
    return Trainer(
        config,
        head,
        sources,
        sampler,
        world,
        inputs.stage1.content_hash(),
        identity,
        checkpoint_parts={"reductions": inputs.reductions},
        **parts,
    )


def _require_same_run(folder: RunFolder, config: TrainConfig, inputs: Inputs, world: World) -> None:
    """Before anything is encoded for what would be refused."""
    found = {
        "data_hash": inputs.dataset.content_hash,
        "encoder_hashes": _encoder_hashes(inputs),
        "global_batch": build_sampler(config, inputs, world).global_batch,
        "processes": world.size,
    }
    require_same_run(folder, inputs.dataset.name, found)


def _resume(trainer: Trainer, folder: RunFolder, log: RunLog) -> None:
    checkpoint = load_head(folder.last)
    if checkpoint.stage1_hash != trainer.stage1_hash:
        raise CheckpointError(
            f"{folder.last} was trained on another stage 1 checkpoint; name that one with --stage1_checkpoint."
        )
    trainer.restore(checkpoint)
    log.cut_back(trainer.position.step)
    log.line(f"resumed after step {trainer.position.step} of {trainer.steps}")


def _encoder_hashes(inputs: Inputs) -> dict[str, str]:
    return {name: part.content_hash() for name, part in inputs.stage1.modalities.items()}


def _facts(inputs: Inputs, trainer: Trainer) -> dict[str, Any]:
    root = Path(trainer.config.output_dir) / trainer.config.log_name
    return {
        "data": inputs.dataset.name,
        "data_absolute": with_absolute_path(inputs.dataset.name),
        "data_relative": with_relative_path(inputs.dataset.name, root),
        "data_hash": inputs.dataset.content_hash,
        "stage1_hash": trainer.stage1_hash,
        "encoder_hashes": _encoder_hashes(inputs),
        "stage1_checkpoint": str(Path(trainer.config.stage1_checkpoint).resolve()),
        "stage1_relative": os.path.relpath(trainer.config.stage1_checkpoint, root),
        "training_ids": len(inputs.dataset.split("train").ids),
        "processes": trainer.world.size,
        "global_batch": trainer.sampler.global_batch,
        "steps": trainer.steps,
        "parameters": sum(p.numel() for p in trainer.head.parameters() if p.requires_grad),
        "device": str(inputs.device),
    }


def _score_test(folder: RunFolder, inputs: Inputs, identity: Identity, log: RunLog, seconds: float) -> None:
    best = load_head(folder.best)
    split = inputs.dataset.splits.get("test")
    if split is None or not split.ids:
        log.line(
            f"done in {seconds:.0f} s; {inputs.dataset.name} has no test split, so the best head "
            f"was not scored: {folder.best}"
        )
        return
    head = best.build().to(inputs.device)
    scores = retrieval(counted_embeddings(head, inputs.sources("test"), split), split)
    log.record("test", {"step": best.progress["step"], **scores})
    write_json(
        folder.results,
        {**identity.fields(), "split": "test", "best": dict(best.progress), "seconds": seconds, **scores},
    )
    log.line(f"done in {seconds:.0f} s; test recall of the best head (epoch {best.progress['best_epoch']}):")
    for line in recall_lines(scores["recall"]):
        log.line(line)
    log.line(f"everything is in {folder.root}")


def recall_lines(recall: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A recall table for people, one line per direction and k."""
    lines = []
    for direction, by_k in recall.items():
        for k, by_cutoff in by_k.items():
            cells = "  ".join(f"R@{cutoff} {100 * value:5.1f} %" for cutoff, value in by_cutoff.items())
            lines.append(f"  {direction:<14} k={k}  {cells}")
    return lines
