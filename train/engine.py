"""The training loop of stage 2: steps, validation, checkpoints, signals."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fluxtalk.artifacts.files import Identity
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.console import progress
from fluxtalk.errors import TrainingError
from fluxtalk.model.checkpoints.head import HeadCheckpoint, save_head
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.losses.register_loss import LossTerms
from fluxtalk.model.process_group import ProcessGroup
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.loop.hard_negatives import HardNegatives
from fluxtalk.train.loop.loader import BatchLoader, read_batch
from fluxtalk.train.loop.optimizer_step import MakeOptimizer, OptimizerStep, adamw
from fluxtalk.train.loop.sampler import PairRows, PairSampler
from fluxtalk.train.loop.step import NextBatch, TrainingStep, build_loss
from fluxtalk.train.loop.train_state import (
    Callback,
    Callbacks,
    StopSignal,
    Throughput,
    TrainState,
    advice,
    report_bad_step,
)
from fluxtalk.train.records.log import RunLog

Validate = Callable[[TokenHead], Mapping[str, Any]]


@dataclass(frozen=True)
class _Outputs:
    """Destinations of a run's checkpoints, records and scores."""

    folder: RunFolder
    log: RunLog
    validate: Validate
    throughput: Throughput
    bar: Any
    """Progress bar; None in all processes but the first."""


class Trainer:
    """Trains a head on features; every random draw depends on (seed, step), so a resumed run is the same run.

    Args:
        head: on its device, in the same state in every process.
        sources: modality to the training split's features.
        sampler: which rows make each step's batch.
        stage1_hash: written into checkpoints.
        optimizer: `adamw`, unless a test passes another.
        checkpoint_parts: other fields of the checkpoints to write, such as the features' reductions.
    """

    def __init__(
        self,
        config: TrainConfig,
        head: TokenHead,
        sources: Mapping[str, FeatureSource],
        sampler: PairSampler,
        group: ProcessGroup,
        stage1_hash: str,
        identity: Identity,
        optimizer: MakeOptimizer = adamw,
        callbacks: Sequence[Callback] = (),
        checkpoint_parts: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.head = head
        self.device = head.device
        self.sources = sources
        self.sampler = sampler
        self.group = group
        self.stage1_hash = stage1_hash
        self.identity = identity
        self.loss = build_loss(config, head, group, sampler.global_batch, sampler.several_items).to(self.device)
        self.step_module = TrainingStep(head, self.loss, config, group, sampler.global_batch)
        self.steps = config.epochs * sampler.steps_per_epoch
        self.optimizer_step = OptimizerStep(head, self.loss, config, group, self.steps, optimizer)
        self.state = TrainState()
        self.negatives = HardNegatives(config, sampler, sources, group.size) if config.hard_negatives else None
        self.stop = StopSignal()
        self._callbacks = Callbacks(callbacks)
        self._checkpoint_parts = dict(checkpoint_parts or {})

    def gradients(self, step: int, next_batch: NextBatch | None = None) -> LossTerms:
        """Compute the loss of step ``step`` (from 0), and its gradient in the parameters: this process's share.

        Args:
            next_batch: returns the features of the step's forward passes, one after the other; None reads them here.
        """
        if next_batch is None:
            rows = self._passes(step)
            next_batch = (read_batch(self.sources, part, self.device) for part in rows).__next__
        self.optimizer_step.zero_grad()
        return self.step_module.gradients(
            self.step_module.draws(step), self.sampler.accum_steps, next_batch, self.optimizer_step.backward
        )

    def step(self, next_batch: NextBatch | None = None) -> tuple[LossTerms, str | None]:
        """Take one step: gradients, and the update, unless loss or gradient is not finite.

        Returns:
            The loss, and the name of what is not finite, if anything: then nothing was updated.
        """
        terms = self.gradients(self.state.step, next_batch)
        norm = self.optimizer_step.reduce_and_clip()
        bad = self._unusable(terms, norm)
        if bad is None:
            self.optimizer_step.apply(self.state.step)
        else:
            self.optimizer_step.skip()
        self.state.step += 1
        self.state.skipped_steps += bad is not None
        self.state.bad_in_a_row = self.state.bad_in_a_row + 1 if bad is not None else 0
        return terms, bad

    def _unusable(self, terms: LossTerms, norm: Tensor) -> str | None:
        """Name the part of a step that is NaN or infinite; the same in all processes, so that they skip together."""
        loss = self.group.all_reduce_sum(terms.total).item()
        if not math.isfinite(loss):
            return f"loss is {loss}"
        # A gradient scaler tries large scales on purpose, and leaves out a step whose scale was too large.
        if not self.optimizer_step.scaler.is_enabled() and not math.isfinite(norm.item()):
            return f"gradient's norm is {norm.item()}"
        return None

    def run(self, folder: RunFolder, log: RunLog, validate: Validate) -> bool:
        """Train to the end, or to a signal.

        Args:
            validate: scores a head; called in the first process only. The best is the one with the highest ``score``.

        Returns:
            Whether training reached its end; False after SIGTERM, SIGUSR1 or Ctrl-C, with the checkpoint written.

        Raises:
            TrainingError: the loss or its gradient was NaN or infinite in three steps in a row, or after the last one;
                the last good checkpoint is named.
        """
        self.step_module.train()
        main = self.group.rank == 0
        bar = progress(None, "training", total=self.steps, unit="step") if main else None
        if bar is not None:
            bar.update(self.state.step)
        try:
            with self.stop, BatchLoader(self.sources, self._plan(), self.device) as loader:
                throughput = Throughput(loader, self.state.step)
                try:
                    return self._run(loader, _Outputs(folder, log, validate, throughput, bar))
                finally:
                    if self.negatives is not None:
                        self.negatives.end()
        finally:
            if bar is not None:
                bar.close()

    def _run(self, loader: BatchLoader, outputs: _Outputs) -> bool:
        main, every = self.group.rank == 0, self.config.checkpoint_every
        while self.state.step < self.steps:
            if self._patience_is_over():
                outputs.log.line(
                    f"ended after {self.config.patience} validations without a better one than that of epoch "
                    f"{self.state.best_epoch}"
                )
                break
            if self.negatives is not None:
                self.negatives.prepare(self.state.step // self.sampler.steps_per_epoch, self.head)
            terms, bad = self.step(loader.next)
            if bad is not None:
                report_bad_step(bad, self.state, outputs.folder, outputs.log)
            if outputs.bar is not None:
                outputs.bar.update()
            if self._callbacks and main:
                self._callbacks.on_step(self.state.step, {n: v.item() for n, v in terms.items().items()})
            epoch, into = divmod(self.state.step, self.sampler.steps_per_epoch)
            if into == 0 and main:
                self._record_epoch(epoch, terms, outputs)
            validated = into == 0 and (epoch % self.config.eval_every == 0 or epoch == self.config.epochs)
            if validated:
                self._validate(epoch, terms, outputs)
            elif every and self.state.step % every == 0:
                self._keep(outputs, self.is_finite())
            if self._stop_requested():
                if not validated:
                    self._keep(outputs, self.is_finite())
                name = signal.Signals(self.stop.number or signal.SIGTERM).name
                outputs.log.line(f"stopped by {name} after step {self.state.step}; continue with --resume")
                return False
        if main and not outputs.folder.best.is_file():
            raise TrainingError(f"No head that was validated had a finite loss and gradient; {advice(outputs.folder)}")
        return True

    def _patience_is_over(self) -> bool:
        """Return whether the last validations were in vain; the same in all processes, and when a run is resumed."""
        epoch, into = divmod(self.state.step, self.sampler.steps_per_epoch)
        if not self.config.patience or into:
            return False
        over = epoch - self.state.best_epoch >= self.config.patience * self.config.eval_every
        # Only the first process validates.
        decided = torch.tensor(float(over and self.group.rank == 0), device=self.device)
        return bool(self.group.all_reduce_sum(decided).item())

    def _passes(self, step: int) -> list[PairRows]:
        """List the rows of a step's forward passes in the order in which they are read."""
        rows = self.sampler.passes(self.sampler.batch(*divmod(step, self.sampler.steps_per_epoch)))
        return rows if len(rows) == 1 else rows * 2

    def _plan(self) -> Iterator[PairRows]:
        for step in range(self.state.step, self.steps):
            if self.negatives is not None and not self.negatives.wait(step // self.sampler.steps_per_epoch):
                return
            yield from self._passes(step)

    def is_finite(self) -> bool:
        """Return whether loss and gradient of the present head are finite, on the batch of the next step, or the last.

        A step's own loss and gradient are of the head before its update. All processes must call this.
        """
        terms = self.gradients(min(self.state.step, self.steps - 1))
        norm = self.optimizer_step.reduce_and_clip() if not self.optimizer_step.scaler.is_enabled() else torch.zeros(())
        bad = self._unusable(terms, norm)
        self.optimizer_step.zero_grad()
        return bad is None

    def _record_epoch(self, epoch: int, terms: LossTerms, outputs: _Outputs) -> None:
        values = {name: _number(value) for name, value in terms.items().items()}
        outputs.log.record(
            "train",
            {
                "epoch": epoch,
                "step": self.state.step,
                **values,
                "temperature": round(1 / self.loss.log_scale.mean().exp().item(), 5),
                "learning_rate": self.optimizer_step.learning_rate(self.state.step),
                "skipped_steps": self.state.skipped_steps,
                **outputs.throughput.record(self.state.step, self.sampler.global_batch),
            },
        )
        outputs.bar.set_postfix(loss=values["total"], refresh=False)

    def _validate(self, epoch: int, terms: LossTerms, outputs: _Outputs) -> None:
        sound = self.is_finite()
        if self.group.rank != 0:
            return
        head = self.evaluated_head()
        scores, loss = outputs.validate(head), _number(terms.total)
        outputs.log.record("validation", {"epoch": epoch, "step": self.state.step, **scores})
        outputs.log.line(f"epoch {epoch}/{self.config.epochs} loss {loss} validation score {scores['score']:.4f}")
        if sound and scores["score"] > self.state.best_score:
            self.state.best_score = float(scores["score"])
            self.state.best_epoch = epoch
            save_head(self._checkpoint(head.state_dict(), {}), outputs.folder.best)
        self._keep(outputs, sound)
        self._callbacks.on_validation(self.state.step, scores, head)
        outputs.throughput.restart(self.state.step)

    def _keep(self, outputs: _Outputs, sound: bool) -> None:
        """Write the last checkpoint, unless it would replace a good one by one that is not."""
        if sound and not self.state.bad_in_a_row:
            self.save(outputs.folder)
            return
        outputs.log.line(
            f"no checkpoint of step {self.state.step}, whose loss or gradient is not finite; the one before is kept"
        )

    def evaluated_head(self) -> TokenHead:
        """Return the head that is validated and kept: the moving average if there is one."""
        if self.optimizer_step.average is None:
            return self.head
        head = type(self.head).from_config(self.head.config).to(self.device)
        head.load_state_dict(self.optimizer_step.average)
        return head.eval()

    def save(self, folder: RunFolder) -> None:
        """Write the last checkpoint with all that resuming needs (first process only)."""
        if self.group.rank == 0:
            state = self.optimizer_step.state() | (self.negatives.state() if self.negatives is not None else {})
            save_head(self._checkpoint(self.head.state_dict(), state), folder.last)

    def restore(self, checkpoint: HeadCheckpoint) -> None:
        """Restore the training state of a last checkpoint.

        Raises:
            TrainingError: it has none, or belongs to a run of another number of steps.
        """
        state, progress_ = checkpoint.training_state, checkpoint.progress
        if not state or progress_.get("steps") != self.steps:
            raise TrainingError(
                "The checkpoint cannot be resumed: its training state is missing, "
                "or the number of pairs in a step "
                f"changed (it planned {progress_.get('steps')} steps, this run {self.steps})."
            )
        self.head.load_state_dict(dict(checkpoint.weights))
        self.optimizer_step.restore(state)
        if self.negatives is not None:
            self.negatives.restore(state)
        self.state = TrainState(**{name: progress_[name] for name in TrainState.__dataclass_fields__})

    def _checkpoint(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> HeadCheckpoint:
        progress_ = {**asdict(self.state), "steps": self.steps}
        return HeadCheckpoint(
            self.head.config, weights, self.stage1_hash, self.identity, progress_, state, **self._checkpoint_parts
        )

    def _stop_requested(self) -> bool:
        flag = torch.tensor(float(self.stop.number or 0), device=self.device)
        return bool(self.group.all_reduce_sum(flag).item())


def _number(value: Tensor) -> float | None:
    """Round a loss for a record; None if it is not finite, because JSON has no NaN."""
    number = value.item()
    return round(number, 6) if math.isfinite(number) else None
