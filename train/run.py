"""One training run from options to results.json: everything between the command line and the loop."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fluxtalk.artifacts.files import Identity, git_revision, write_json
from fluxtalk.artifacts.run import RunFolder, RunInfo
from fluxtalk.datasets.bad_items import write_report
from fluxtalk.datasets.data_paths import with_absolute_path, with_relative_path
from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.process_group import ProcessGroup
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import join_process_group
from fluxtalk.train.engine import Trainer
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.grids import with_grids, with_recorded_grids
from fluxtalk.train.init_from import initialize_from, read_initial_head
from fluxtalk.train.inputs import Inputs, build_sampler, read_inputs
from fluxtalk.train.loop.train_state import Callback
from fluxtalk.train.records.log import RunLog
from fluxtalk.train.records.resume import record_resumption, require_same_run
from fluxtalk.train.records.run_folder import check_run_folder, lock_run_folder, write_description
from fluxtalk.train.records.trackers import Tracker, open_trackers
from fluxtalk.train.results.score import recall_lines, score_head
from fluxtalk.train.sweep import Sweep, SweepStoppedError, with_chosen


@dataclass(frozen=True)
class FitResult:
    """The outcome of a training run."""

    folder: RunFolder
    finished: bool
    """True if training reached its end; False after SIGTERM, SIGUSR1 or Ctrl-C, with the checkpoint written."""
    exit_code: int
    """0, or 128 + the signal's number."""

    @property
    def scores(self) -> dict[str, Any] | None:
        """The content of results.json: the best head on the test split. None if nothing was scored."""
        return self.folder.read_results()


def fit(config: TrainConfig, resume: bool = False, callbacks: Sequence[Callback] = ()) -> FitResult:
    """Train to the end and score the best head once on the test split, as `fluxtalk-train` does.

    Args:
        resume: continue the run from its last checkpoint.
        callbacks: receive steps and validations.

    Raises:
        FluxTalkError: the options, the data, a file or the numbers make training impossible.
    """
    root = RunFolder(Path(config.output_dir) / config.log_name)
    if resume:
        config = with_recorded_grids(with_chosen(config, root.sweep), root)
    folder = check_run_folder(config, resume)
    identity = Identity(config.experiment_id, config.implementation, git_revision=git_revision())
    with join_process_group(config.device) as (group, device), ExitStack() as held:
        main = group.rank == 0
        sweeps = config.sweep != "none" and not resume
        if sweeps and group.size > 1:
            raise UsageError(
                f"--sweep runs in one process, not {group.size}; sweep without torchrun, and give what it chose."
            )
        if resume and main:
            held.enter_context(lock_run_folder(folder))
        begun = read_initial_head(Path(config.init_from)) if config.init_from is not None else None
        inputs = read_inputs(config, group, device, begun.reductions if begun is not None else None)
        started = time.monotonic()
        # The folder is made later, so that an error up to here leaves nothing.
        if main:
            _trackers(config, folder)  # a missing library is told before anything is encoded
        say = RunLog(identity, None, active=main).line
        if resume:
            inputs = inputs.as_recorded(folder)
            _require_same_run(folder, config, inputs, group)
        else:
            inputs = inputs.admitted(config.bad_items, group, say)
        validation_sources = inputs.sources("validation", group, say)
        sources = inputs.sources("train", group, say)
        config = with_grids(config, sources, inputs.images, say)

        def validate(head: TokenHead) -> dict[str, Any]:
            return score_head(head, validation_sources, inputs.dataset.split("validation"))

        if sweeps:
            held.enter_context(lock_run_folder(folder))
            check_run_folder(config, resume)
            sweep = Sweep(config, folder.sweep)
            with closing(RunLog(identity, folder)) as log:
                try:
                    sweep.run(
                        lambda c: build_trainer(c, inputs, group, identity, sources), validate, identity, log.line
                    )
                except SweepStoppedError as stopped:
                    return FitResult(folder, False, stopped.exit_code)
            config = sweep.result()
        trainer = build_trainer(config, inputs, group, identity, sources, callbacks=callbacks)
        if main and not resume and not sweeps:
            held.enter_context(lock_run_folder(folder))
            check_run_folder(config, resume)  # again, because another training may have begun here since
        with closing(RunLog(identity, folder, main, _trackers(config, folder) if main else ())) as log:
            _begin(trainer, inputs, folder, log, resume)
            finished = trainer.run(folder, log, validate)
            if not finished:
                return FitResult(folder, False, 128 + (trainer.stop.number or 15))
            if main:
                _score_test(folder, inputs, identity, log, round(time.monotonic() - started, 1))
            # A process that leaves early would tear down the group while the first still works.
            group.all_reduce_sum(torch.zeros(1))
    return FitResult(folder, True, 0)


def _trackers(config: TrainConfig, folder: RunFolder) -> tuple[Tracker, ...]:
    return open_trackers(config.trackers, folder.root, dataclasses.asdict(config))


def _begin(trainer: Trainer, inputs: Inputs, folder: RunFolder, log: RunLog, resume: bool) -> None:
    info, main = _info(inputs, trainer), trainer.group.rank == 0
    if resume:
        _resume(trainer, folder, log)
        if main:
            record_resumption(folder, trainer.config, info, trainer.state.step)
    elif main:
        if inputs.dataset.left_out is not None:
            left_out = inputs.dataset.left_out
            write_report(folder.bad_items, inputs.dataset.name, left_out.whole.content_hash, left_out.bad)
        write_description(folder, trainer.config, trainer.identity, info)
        trainer.save(folder)
    _announce(log, folder, trainer, inputs)


def _announce(log: RunLog, folder: RunFolder, trainer: Trainer, inputs: Inputs) -> None:
    trained = sum(p.numel() for p in trainer.head.parameters() if p.requires_grad)
    sampler = trainer.sampler
    log.line(
        f"training {trained:,} parameters on {inputs.dataset.name}: "
        f"{trainer.steps} steps of {sampler.global_batch} pairs, {trainer.group.size} process(es) on {inputs.device}"
    )
    single = [m for m in inputs.stage1.modalities if m not in sampler.several_items]
    if trainer.config.complementary_objective == "difference" and single:
        log.line(
            f"warning: no training id has two items of {' or '.join(single)}, so nothing private can be asked for "
            "there, and --complementary-objective difference trains no complementary token of it"
        )
    if inputs.dataset.left_out is not None:
        log.line(f"warning: {inputs.dataset.left_out.sentence()}; {folder.bad_items} lists them")
    for note in inputs.dataset.notes:
        log.line(f"warning: {note}")
    if sampler.global_batch < sampler.asked:
        log.line(
            f"warning: a step of {sampler.asked} rows was asked for, but the training split fills no more than "
            f"{sampler.global_batch}; a smaller --batch-size gives the same"
        )


def build_trainer(
    config: TrainConfig,
    inputs: Inputs,
    group: ProcessGroup,
    identity: Identity,
    sources: Mapping[str, FeatureSource] | None = None,
    **parts: Any,
) -> Trainer:
    """Build the trainer of these options.

    Args:
        sources: the training split's features, if they are open already.
        parts: further arguments of `Trainer`.
    """
    sources = inputs.sources("train", group) if sources is None else sources
    sampler = build_sampler(config, inputs, group)
    torch.manual_seed(config.seed)
    head = RegisterTokenModule.from_config(inputs.head_config(config), config.seed)
    if config.init_from is not None:
        initialize_from(head, inputs.stage1, Path(config.init_from), config.freeze_registers)
    head.to(inputs.device)
    return Trainer(
        config,
        head,
        sources,
        sampler,
        group,
        inputs.stage1.content_hash(),
        identity,
        checkpoint_parts={"reductions": inputs.reductions},
        **parts,
    )


def _require_same_run(folder: RunFolder, config: TrainConfig, inputs: Inputs, group: ProcessGroup) -> None:
    """Check a resumed run before anything is encoded."""
    require_same_run(
        folder,
        inputs.dataset.name,
        data_hash=inputs.dataset.content_hash,
        encoder_hashes=_encoder_hashes(inputs),
        global_batch=build_sampler(config, inputs, group).global_batch,
        processes=group.size,
    )


def _resume(trainer: Trainer, folder: RunFolder, log: RunLog) -> None:
    checkpoint = load_head(folder.last)
    if checkpoint.stage1_hash != trainer.stage1_hash:
        raise CheckpointError(
            f"{folder.last} was trained on another stage 1 checkpoint; name that one with --stage1-checkpoint."
        )
    trainer.restore(checkpoint)
    log.cut_back(trainer.state.step)
    log.line(f"resumed after step {trainer.state.step} of {trainer.steps}")


def _encoder_hashes(inputs: Inputs) -> dict[str, str]:
    return {name: part.content_hash() for name, part in inputs.stage1.modalities.items()}


def _info(inputs: Inputs, trainer: Trainer) -> RunInfo:
    root = Path(trainer.config.output_dir) / trainer.config.log_name
    return RunInfo(
        data=inputs.dataset.name,
        data_absolute=with_absolute_path(inputs.dataset.name),
        data_relative=with_relative_path(inputs.dataset.name, root),
        data_hash=inputs.dataset.content_hash,
        stage1_hash=trainer.stage1_hash,
        encoder_hashes=_encoder_hashes(inputs),
        stage1_checkpoint=str(Path(trainer.config.stage1_checkpoint).resolve()),
        stage1_relative=os.path.relpath(trainer.config.stage1_checkpoint, root),
        training_ids=len(inputs.dataset.split("train").ids),
        processes=trainer.group.size,
        global_batch=trainer.sampler.global_batch,
        steps=trainer.steps,
        parameters=sum(p.numel() for p in trainer.head.parameters() if p.requires_grad),
        device=str(inputs.device),
        left_out=inputs.dataset.told().get("left_out"),
    )


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
    scores = score_head(head, inputs.sources("test"), split)
    log.record("test", {"step": best.progress["step"], **scores})
    write_json(
        folder.results,
        {
            **identity.fields(),
            "split": "test",
            "best": dict(best.progress),
            "seconds": seconds,
            **inputs.dataset.told(),
            **scores,
        },
    )
    log.line(f"done in {seconds:.0f} s; test recall of the best head (epoch {best.progress['best_epoch']}):")
    for line in recall_lines(scores["recall"]):
        log.line(line)
    log.line(f"everything is in {folder.root}")
