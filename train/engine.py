"""The training loop of stage 2: steps, validation, checkpoints, signals."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fluxtalk.artifacts import Identity
from fluxtalk.console import progress
from fluxtalk.errors import TrainingError
from fluxtalk.model.complementary import build_objective
from fluxtalk.model.head_checkpoint import HeadCheckpoint, save_head
from fluxtalk.model.losses import LossTerms, RegisterTokenLoss
from fluxtalk.model.token_head import TokenHead
from fluxtalk.model.world import World
from fluxtalk.train.callbacks import Callback, Callbacks
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.features import FeatureSource
from fluxtalk.train.loader import BatchLoader, read_batch
from fluxtalk.train.logs import RunLog
from fluxtalk.train.run_folder import RunFolder
from fluxtalk.train.sampler import PairRows, PairSampler
from fluxtalk.train.signals import StopSignal
from fluxtalk.train.step import NextBatch, TrainingStep
from fluxtalk.train.update import MakeOptimiser, Update, adamw

Validate = Callable[[TokenHead], Mapping[str, Any]]
BAD_STEPS = 3
"""Steps in a row without a usable loss or gradient that end a run."""


@dataclass
class Position:
    """Where training stands."""

    step: int = 0
    """Steps done, skipped ones included."""
    best_score: float = -1.0
    best_epoch: int = 0
    skipped_steps: int = 0
    """Steps without an update, because the loss or its gradient was NaN or infinite."""
    bad_in_a_row: int = 0


class Trainer:
    """Trains a head on features; every random draw depends on (seed, step), so a resumed run is the same run.

    Args:
        head: on its device, in the same state in every process.
        sources: modality to the training split's features.
        sampler: which rows make each step's batch.
        stage1_hash: written into checkpoints.
        optimiser: `adamw`, unless a test brings another.
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
        optimiser: MakeOptimiser = adamw,
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
        self.update = Update(head, self.loss, config, world, self.steps, optimiser)
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
            TrainingError: the loss or its gradient was NaN or infinite in three steps in a row; the last checkpoint
                is named.
        """
        self.step_module.train()
        main = self.world.rank == 0
        bar = progress(None, "training", total=self.steps, unit="step") if main else None
        if bar is not None:
            bar.update(self.position.step)
        try:
            with self.stop, BatchLoader(self.sources, self._plan(), self.device) as loader:
                return self._run(folder, log, validate, loader, bar)
        finally:
            if bar is not None:
                bar.close()

    def _run(self, folder: RunFolder, log: RunLog, validate: Validate, loader: BatchLoader, bar: Any) -> bool:
        clock = _Clock(loader, self.position.step)
        while self.position.step < self.steps:
            terms, bad = self.step(loader.next)
            if bad is not None:
                self._report_bad(bad, folder, log)
            if bar is not None:
                bar.update()
            if self._callbacks and self.world.rank == 0:
                self._callbacks.on_step(self.position.step, {n: v.item() for n, v in terms.items().items()})
            epoch, into = divmod(self.position.step, self.sampler.steps_per_epoch)
            if into == 0:
                self._after_epoch(epoch, terms, folder, log, validate, bar, clock)
            elif self.config.checkpoint_every and self.position.step % self.config.checkpoint_every == 0:
                self.save(folder)
            if self._stop_requested():
                self.save(folder)
                name = signal.Signals(self.stop.number or signal.SIGTERM).name
                log.line(f"stopped by {name} after step {self.position.step}; continue with --resume")
                return False
        return True

    def _passes(self, step: int) -> list[PairRows]:
        """The rows of a step's forward passes in the order in which they are read."""
        rows = self.sampler.passes(self.sampler.batch(*divmod(step, self.sampler.steps_per_epoch)))
        return rows if len(rows) == 1 else rows * 2

    def _plan(self) -> Iterator[PairRows]:
        for step in range(self.position.step, self.steps):
            yield from self._passes(step)

    def _report_bad(self, bad: str, folder: RunFolder, log: RunLog) -> None:
        if self.position.bad_in_a_row < BAD_STEPS:
            log.line(f"step {self.position.step} skipped: the {bad}")
            return
        kept = (
            f"the last good checkpoint is {folder.last}" if folder.last.is_file() else "no checkpoint was written yet"
        )
        raise TrainingError(
            f"The {bad} at step {self.position.step}, the third such step in a row; "
            f"{kept}. Lower --learning_rate, or check the features."
        )

    def _after_epoch(
        self,
        epoch: int,
        terms: LossTerms,
        folder: RunFolder,
        log: RunLog,
        validate: Validate,
        bar: Any,
        clock: _Clock,
    ) -> None:
        if self.world.rank != 0:
            return
        values = {name: _number(value) for name, value in terms.items().items()}
        log.record(
            "train",
            {
                "epoch": epoch,
                "step": self.position.step,
                **values,
                "temperature": round(1 / self.loss.log_scale.exp().item(), 5),
                "learning_rate": self.update.learning_rate(self.position.step),
                "skipped_steps": self.position.skipped_steps,
                **clock.rates(self.position.step, self.sampler.global_batch),
            },
        )
        bar.set_postfix(loss=values["total"], refresh=False)
        if epoch % self.config.eval_every and epoch != self.config.epochs:
            return
        head = self.evaluated_head()
        scores = validate(head)
        log.record("validation", {"epoch": epoch, "step": self.position.step, **scores})
        log.line(f"epoch {epoch}/{self.config.epochs} loss {values['total']} validation score {scores['score']:.4f}")
        if scores["score"] > self.position.best_score:
            self.position.best_score = float(scores["score"])
            self.position.best_epoch = epoch
            save_head(self._checkpoint(head.state_dict(), {}), folder.best)
        self.save(folder)
        self._callbacks.on_validation(self.position.step, scores, head)
        clock.restart(self.position.step)

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
            TrainingError: it has none, or belongs to another batch size.
        """
        state, progress_ = checkpoint.training_state, checkpoint.progress
        if not state or progress_.get("steps") != self.steps:
            raise TrainingError(
                "The checkpoint cannot be resumed: its training state is missing, "
                "or the number of processes or pairs "
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


class _Clock:
    """Steps per second, and the share of the time that they waited for features."""

    def __init__(self, loader: BatchLoader, step: int) -> None:
        self._loader = loader
        self._started = time.perf_counter()
        self._step = step

    def restart(self, step: int) -> None:
        """Begin anew, so that validations do not count."""
        self._loader.waited_s = 0.0
        self._started = time.perf_counter()
        self._step = step

    def rates(self, step: int, batch: int) -> dict[str, float]:
        """For a record: what the steps since `restart` took."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        done = step - self._step
        return {
            "steps_per_s": round(done / seconds, 3),
            "pairs_per_s": round(done * batch / seconds, 1),
            "wait_share": round(self._loader.waited_s / seconds, 4),
        }


def build_loss(config: TrainConfig, head: TokenHead, world: World, global_batch: int) -> RegisterTokenLoss:
    """The loss that the options ask for."""
    sizes = head.config
    complementary = sizes.num_register_tokens - sizes.num_overlapping_tokens
    return RegisterTokenLoss(
        config.complementary_reg_weight,
        world,
        contrastive=config.contrastive,
        aggregation=sizes.aggregation,
        batch_size=global_batch,
        objective=build_objective(
            config.complementary_objective,
            sizes.dims,
            sizes.dim,
            complementary,
            config.complementary_correlation_weight,
        ),
        objective_weight=config.complementary_objective_weight,
    )


def _number(value: Tensor) -> float | None:
    """A loss for a record: JSON has no NaN."""
    number = value.item()
    return round(number, 6) if math.isfinite(number) else None
