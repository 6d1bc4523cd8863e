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
from fluxtalk.model.process_group import World
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.loop.bad_steps import report_bad_step, ways_on
from fluxtalk.train.loop.callbacks import Callback, Callbacks
from fluxtalk.train.loop.loader import BatchLoader, read_batch
from fluxtalk.train.loop.optimizer_step import MakeOptimizer, Update, adamw
from fluxtalk.train.loop.position import Position
from fluxtalk.train.loop.rates import Rates
from fluxtalk.train.loop.sampler import PairRows, PairSampler
from fluxtalk.train.loop.signals import StopSignal
from fluxtalk.train.loop.step import NextBatch, TrainingStep
from fluxtalk.train.loop.training_loss import build_loss
from fluxtalk.train.records.log import RunLog

Validate = Callable[[TokenHead], Mapping[str, Any]]


@dataclass(frozen=True)
class _Surroundings:
    """What a run reports to."""

    folder: RunFolder
    log: RunLog
    validate: Validate
    rates: Rates
    bar: Any
    """A progress bar; None in all processes but the first."""


class Trainer:
    """Trains a head on features; every random draw depends on (seed, step), so a resumed run is the same run.

    Args:
        head: on its device, in the same state in every process.
        sources: modality to the training split's features.
        sampler: which rows make each step's batch.
        stage1_hash: written into checkpoints.
        optimizer: `adamw`, unless a test brings another.
        checkpoint_parts: other fields of the checkpoints to write, such as the features' reductions.
    """

    def __init__(
        self,
        config: TrainConfig,
        head: TokenHead,
        sources: Mapping[str, FeatureSource],
        sampler: PairSampler,
        world: World,
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
        self.world = world
        self.stage1_hash = stage1_hash
        self.identity = identity
        self.loss = build_loss(config, head, world, sampler.global_batch).to(self.device)
        self.step_module = TrainingStep(head, self.loss, config, world, sampler.global_batch)
        self.steps = config.epochs * sampler.steps_per_epoch
        self.update = Update(head, self.loss, config, world, self.steps, optimizer)
        self.position = Position()
        self.stop = StopSignal()
        self._callbacks = Callbacks(callbacks)
        self._checkpoint_parts = dict(checkpoint_parts or {})

    def gradients(self, step: int, next_batch: NextBatch | None = None) -> LossTerms:
        """The loss of step ``step`` (from 0), and its gradient in the parameters: this process's share.

        Args:
            next_batch: brings the features of the step's forward passes; read here and now where absent.
        """
        if next_batch is None:
            rows = self._passes(step)
            next_batch = (read_batch(self.sources, part, self.device) for part in rows).__next__
        self.update.clear()
        return self.step_module.gradients(
            self.step_module.draws(step), self.sampler.accum_steps, next_batch, self.update.backward
        )

    def step(self, next_batch: NextBatch | None = None) -> tuple[LossTerms, str | None]:
        """One step: gradients, and the update, unless what was computed cannot be used.

        Returns:
            The loss, and what was not finite, if anything: then nothing was updated.
        """
        terms = self.gradients(self.position.step, next_batch)
        norm = self.update.combine()
        bad = self._unusable(terms, norm)
        if bad is None:
            self.update.apply(self.position.step)
        else:
            self.update.skip()
        self.position.step += 1
        self.position.skipped_steps += bad is not None
        self.position.bad_in_a_row = self.position.bad_in_a_row + 1 if bad is not None else 0
        return terms, bad

    def _unusable(self, terms: LossTerms, norm: Tensor) -> str | None:
        """What of a step is NaN or infinite; the same answer in every process, so that they skip together."""
        loss = self.world.total(terms.total).item()
        if not math.isfinite(loss):
            return f"loss is {loss}"
        # A scaler tries large scales on purpose, and leaves the step out itself where one was too large.
        if not self.update.scaler.is_enabled() and not math.isfinite(norm.item()):
            return f"gradient's norm is {norm.item()}"
        return None

    def run(self, folder: RunFolder, log: RunLog, validate: Validate) -> bool:
        """Train to the end, or to a signal.

        Args:
            validate: scores a head; called in the first process only. Its ``score`` picks the best.

        Returns:
            Whether training reached its end; False after SIGTERM or SIGUSR1, with the checkpoint written.

        Raises:
            TrainingError: the loss or its gradient was NaN or infinite in three steps in a row, or after the last one;
                the last good checkpoint is named.
        """
        self.step_module.train()
        main = self.world.rank == 0
        bar = progress(None, "training", total=self.steps, unit="step") if main else None
        if bar is not None:
            bar.update(self.position.step)
        try:
            with self.stop, BatchLoader(self.sources, self._plan(), self.device) as loader:
                rates = Rates(loader, self.position.step)
                return self._run(loader, _Surroundings(folder, log, validate, rates, bar))
        finally:
            if bar is not None:
                bar.close()

    def _run(self, loader: BatchLoader, around: _Surroundings) -> bool:
        main, every = self.world.rank == 0, self.config.checkpoint_every
        while self.position.step < self.steps:
            terms, bad = self.step(loader.next)
            if bad is not None:
                report_bad_step(bad, self.position.step, self.position.bad_in_a_row, around.folder, around.log)
            if around.bar is not None:
                around.bar.update()
            if self._callbacks and main:
                self._callbacks.on_step(self.position.step, {n: v.item() for n, v in terms.items().items()})
            epoch, into = divmod(self.position.step, self.sampler.steps_per_epoch)
            if into == 0 and main:
                self._record_epoch(epoch, terms, around)
            validated = into == 0 and (epoch % self.config.eval_every == 0 or epoch == self.config.epochs)
            if validated:
                self._validate(epoch, terms, around)
            elif every and self.position.step % every == 0:
                self._keep(around, self.is_sound())
            if self._stop_requested():
                if not validated:
                    self._keep(around, self.is_sound())
                name = signal.Signals(self.stop.number or signal.SIGTERM).name
                around.log.line(f"stopped by {name} after step {self.position.step}; continue with --resume")
                return False
        if main and not around.folder.best.is_file():
            raise TrainingError(f"No head that was validated had a finite loss and gradient; {ways_on(around.folder)}")
        return True

    def _passes(self, step: int) -> list[PairRows]:
        """The rows of a step's forward passes in the order in which they are read."""
        rows = self.sampler.passes(self.sampler.batch(*divmod(step, self.sampler.steps_per_epoch)))
        return rows if len(rows) == 1 else rows * 2

    def _plan(self) -> Iterator[PairRows]:
        for step in range(self.position.step, self.steps):
            yield from self._passes(step)

    def is_sound(self) -> bool:
        """Whether loss and gradient of the head as it is now are finite, on the next step's batch (the last one's).

        Those of a step are of the head before its update, so they do not tell. All processes must call this.
        """
        terms = self.gradients(min(self.position.step, self.steps - 1))
        norm = self.update.combine() if not self.update.scaler.is_enabled() else torch.zeros(())
        bad = self._unusable(terms, norm)
        self.update.clear()
        return bad is None

    def _record_epoch(self, epoch: int, terms: LossTerms, around: _Surroundings) -> None:
        values = {name: _number(value) for name, value in terms.items().items()}
        around.log.record(
            "train",
            {
                "epoch": epoch,
                "step": self.position.step,
                **values,
                "temperature": round(1 / self.loss.log_scale.exp().item(), 5),
                "learning_rate": self.update.learning_rate(self.position.step),
                "skipped_steps": self.position.skipped_steps,
                **around.rates.record(self.position.step, self.sampler.global_batch),
            },
        )
        around.bar.set_postfix(loss=values["total"], refresh=False)

    def _validate(self, epoch: int, terms: LossTerms, around: _Surroundings) -> None:
        sound = self.is_sound()
        if self.world.rank != 0:
            return
        head = self.evaluated_head()
        scores, loss = around.validate(head), _number(terms.total)
        around.log.record("validation", {"epoch": epoch, "step": self.position.step, **scores})
        around.log.line(f"epoch {epoch}/{self.config.epochs} loss {loss} validation score {scores['score']:.4f}")
        if sound and scores["score"] > self.position.best_score:
            self.position.best_score = float(scores["score"])
            self.position.best_epoch = epoch
            save_head(self._checkpoint(head.state_dict(), {}), around.folder.best)
        self._keep(around, sound)
        self._callbacks.on_validation(self.position.step, scores, head)
        around.rates.restart(self.position.step)

    def _keep(self, around: _Surroundings, sound: bool) -> None:
        """Write the last checkpoint, unless it would replace a good one by one that is not."""
        if sound and not self.position.bad_in_a_row:
            self.save(around.folder)
            return
        around.log.line(
            f"no checkpoint of step {self.position.step}, whose loss or gradient is not finite; the one before is kept"
        )

    def evaluated_head(self) -> TokenHead:
        """The head that is validated and kept: the average where there is one."""
        if self.update.average is None:
            return self.head
        head = type(self.head).from_config(self.head.config).to(self.device)
        head.load_state_dict(self.update.average)
        return head.eval()

    def save(self, folder: RunFolder) -> None:
        """Write the last checkpoint with all that resuming needs (first process only)."""
        if self.world.rank == 0:
            save_head(self._checkpoint(self.head.state_dict(), self.update.state()), folder.last)

    def restore(self, checkpoint: HeadCheckpoint) -> None:
        """Take up the training state of a last checkpoint.

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
        self.update.restore(state)
        self.position = Position(**{name: progress_[name] for name in Position.__dataclass_fields__})

    def _checkpoint(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> HeadCheckpoint:
        progress_ = {**asdict(self.position), "steps": self.steps}
        return HeadCheckpoint(
            self.head.config, weights, self.stage1_hash, self.identity, progress_, state, **self._checkpoint_parts
        )

    def _stop_requested(self) -> bool:
        flag = torch.tensor(float(self.stop.number or 0), device=self.device)
        return bool(self.world.total(flag).item())


def _number(value: Tensor) -> float | None:
    """A loss for a record: JSON has no NaN."""
    number = value.item()
    return round(number, 6) if math.isfinite(number) else None
