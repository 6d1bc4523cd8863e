"""The training loop of stage 2: steps, validation, checkpoints, signals."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fluxtalk.artifacts import Identity
from fluxtalk.console import progress
from fluxtalk.errors import TrainingError
from fluxtalk.model.head_checkpoint import HeadCheckpoint, save_head
from fluxtalk.model.losses import LossTerms, RegisterTokenLoss
from fluxtalk.model.nested_dropout import derive_seed
from fluxtalk.model.registers import RegisterTokenModule
from fluxtalk.model.world import World
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.features import FeatureSource
from fluxtalk.train.logs import RunLog
from fluxtalk.train.run_folder import RunFolder
from fluxtalk.train.sampler import PairSampler

Validate = Callable[[RegisterTokenModule], Mapping[str, Any]]


class TrainingStep(nn.Module):
    """Head and loss as one module, so that one DistributedDataParallel covers all that trains."""

    def __init__(self, head: RegisterTokenModule, loss: RegisterTokenLoss) -> None:
        super().__init__()
        self.head = head
        self.loss = loss

    def forward(
        self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor], lengths: Mapping[str, Tensor], ids: Tensor
    ) -> LossTerms:
        """The loss of one batch; ``lengths`` are the draws of nested dropout."""
        terms: LossTerms = self.loss(self.head(features, masks, prefix_lengths=lengths), ids)
        return terms


def adamw(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over what trains in a module; matrices decay, vectors and the temperature do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Linear warm-up, then a cosine to 0."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass
class Position:
    """Where training stands."""

    step: int = 0
    """Optimiser steps done."""
    best_score: float = -1.0
    best_epoch: int = 0


class Trainer:
    """Trains a head on features; every random draw depends on (seed, step), so a resumed run is the same run.

    Args:
        head: on its device, in the same state in every process.
        sources: modality to the training split's features.
        sampler: which rows make each step's batch.
        stage1_hash: written into checkpoints.
        optimiser: made by `adamw`, unless a test brings another.
    """

    def __init__(
        self,
        config: TrainConfig,
        head: RegisterTokenModule,
        sources: Mapping[str, FeatureSource],
        sampler: PairSampler,
        world: World,
        stage1_hash: str,
        identity: Identity,
        optimiser: Callable[[nn.Module, TrainConfig], torch.optim.Optimizer] = adamw,
    ) -> None:
        self.config = config
        self.device = head.registers.device
        loss = RegisterTokenLoss(config.complementary_reg_weight, world).to(self.device)
        self.step_module = TrainingStep(head, loss)
        self.head = head
        self.loss = loss
        self.sources = sources
        self.sampler = sampler
        self.world = world
        self.stage1_hash = stage1_hash
        self.identity = identity
        self.steps = config.epochs * sampler.steps_per_epoch
        self.position = Position()
        self.optimiser = optimiser(self.step_module, config)
        self.average = {name: p.detach().clone() for name, p in head.state_dict().items()} if config.ema_decay else None
        self._parallel: nn.Module = self.step_module
        if world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(self.step_module, device_ids=ids)
        self._signal: int | None = None

    def forward(self, epoch: int, step_in_epoch: int) -> LossTerms:
        """The loss of one global batch, as this process sees it."""
        batch = self.sampler.batch(epoch, step_in_epoch)
        step = epoch * self.sampler.steps_per_epoch + step_in_epoch
        torch.manual_seed(derive_seed(self.config.seed, "dropout", step, self.world.rank))
        features, masks, lengths = {}, {}, {}
        for modality, source in self.sources.items():
            features[modality], masks[modality] = source.batch(batch.rows[modality])
            draw = self.head.nested_dropout.sample(self.sampler.global_batch, step, modality)
            lengths[modality] = draw[self.sampler.local].to(self.device)
        ids = torch.from_numpy(batch.ids).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            terms: LossTerms = self._parallel(features, masks, lengths, ids)
        return terms

    def update(self, terms: LossTerms) -> None:
        """Backward, clip, step, clamp."""
        self._backward(terms)
        self._step()

    def _backward(self, terms: LossTerms) -> Tensor:
        """The gradients, clipped; and their norm before."""
        self.optimiser.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        return nn.utils.clip_grad_norm_(self.step_module.parameters(), self.config.gradient_clip)

    def _step(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.step()
        self.loss.clamp_temperature()
        self.position.step += 1
        if self.average is not None:
            # Young averages forget faster, or they would remember the initialisation.
            decay = min(self.config.ema_decay, (1 + self.position.step) / (10 + self.position.step))
            for name, value in self.head.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def learning_rate(self) -> float:
        """The rate of the step at hand: it depends on the step alone, so that resuming needs no state."""
        factor = learning_rate_factor(self.position.step, self.steps, self.config.warmup_fraction)
        return self.config.learning_rate * factor

    def run(self, folder: RunFolder, log: RunLog, validate: Validate) -> bool:
        """Train to the end, or to a signal.

        Args:
            validate: scores a head; called in the first process only. Its ``score`` picks the best.

        Returns:
            Whether training reached its end; False after SIGTERM or SIGUSR1, with the checkpoint written.

        Raises:
            TrainingError: the loss or its gradient is NaN or infinite; the last checkpoint is named.
        """
        with self._signals():
            return self._run(folder, log, validate)

    def _run(self, folder: RunFolder, log: RunLog, validate: Validate) -> bool:
        self.step_module.train()
        per_epoch = self.sampler.steps_per_epoch
        main = self.world.rank == 0
        bar = progress(None, "training", total=self.steps, unit="step") if main else None
        if bar is not None:
            bar.update(self.position.step)
        try:
            while self.position.step < self.steps:
                epoch, step_in_epoch = divmod(self.position.step, per_epoch)
                terms = self.forward(epoch, step_in_epoch)
                self._require_finite("loss", self.world.total(terms.total), folder)
                # A finite loss may have a NaN gradient; what it would leave behind is no good checkpoint.
                self._require_finite("gradient's norm", self._backward(terms), folder)
                self._step()
                if bar is not None:
                    bar.update()
                if step_in_epoch == per_epoch - 1:
                    self._after_epoch(epoch + 1, terms, folder, log, validate, bar)
                if self._stop_requested():
                    self.save(folder)
                    log.line(
                        f"stopped by {signal.Signals(self._signal or signal.SIGTERM).name} "
                        f"after step {self.position.step}; continue with --resume"
                    )
                    return False
        finally:
            if bar is not None:
                bar.close()
        return True

    def _after_epoch(
        self, epoch: int, terms: LossTerms, folder: RunFolder, log: RunLog, validate: Validate, bar: Any
    ) -> None:
        if self.world.rank != 0:
            return
        values = {name: round(value.item(), 6) for name, value in terms.items().items()}
        temperature = round(1 / self.loss.log_scale.exp().item(), 5)
        log.record(
            "train",
            {
                "epoch": epoch,
                "step": self.position.step,
                **values,
                "temperature": temperature,
                "learning_rate": self.learning_rate(),
            },
        )
        bar.set_postfix(loss=f"{values['total']:.3f}", refresh=False)
        if epoch % self.config.eval_every and epoch != self.config.epochs:
            return
        head = self.evaluated_head()
        scores = validate(head)
        log.record("validation", {"epoch": epoch, "step": self.position.step, **scores})
        log.line(
            f"epoch {epoch}/{self.config.epochs} loss {values['total']:.4f} validation score {scores['score']:.4f}"
        )
        if scores["score"] > self.position.best_score:
            self.position.best_score = float(scores["score"])
            self.position.best_epoch = epoch
            save_head(self._checkpoint(head.state_dict(), {}), folder.best)
        self.save(folder)

    def evaluated_head(self) -> RegisterTokenModule:
        """The head that is validated and kept: the average where there is one."""
        if self.average is None:
            return self.head
        head = RegisterTokenModule.from_config(self.head.config).to(self.device)
        head.load_state_dict(self.average)
        return head.eval()

    def save(self, folder: RunFolder) -> None:
        """Write the last checkpoint with all that resuming needs (first process only)."""
        if self.world.rank == 0:
            save_head(self._checkpoint(self.head.state_dict(), self._state()), folder.last)

    def restore(self, checkpoint: HeadCheckpoint) -> None:
        """Take up the training state of a last checkpoint.

        Raises:
            TrainingError: it has none, or belongs to another batch size.
        """
        state = checkpoint.training_state
        if not state or checkpoint.progress.get("steps") != self.steps:
            raise TrainingError(
                "The checkpoint cannot be resumed: its training state is missing, "
                "or the number of processes or pairs "
                f"changed (it planned {checkpoint.progress.get('steps')} steps, this run {self.steps})."
            )
        self.head.load_state_dict(dict(checkpoint.weights))
        self.loss.log_scale.data.copy_(state["log_scale"])
        names = _parameter_names(self.step_module)
        optimiser_state = self.optimiser.state_dict()
        order = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(order):
            prefix = f"optimiser.{names[parameter]}."
            found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if found:
                optimiser_state["state"][index] = found
        self.optimiser.load_state_dict(optimiser_state)
        if self.average is not None:
            self.average = {name: state[f"average.{name}"].to(self.device) for name in self.average}
        self.position = Position(
            checkpoint.progress["step"], checkpoint.progress["best_score"], checkpoint.progress["best_epoch"]
        )

    def _state(self) -> dict[str, Tensor]:
        names = _parameter_names(self.step_module)
        state = {"log_scale": self.loss.log_scale.detach()}
        for parameter, values in self.optimiser.state.items():
            for key, value in values.items():
                state[f"optimiser.{names[parameter]}.{key}"] = torch.as_tensor(value)
        if self.average is not None:
            state |= {f"average.{name}": value for name, value in self.average.items()}
        return state

    def _checkpoint(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> HeadCheckpoint:
        progress_ = {
            "step": self.position.step,
            "steps": self.steps,
            "best_score": self.position.best_score,
            "best_epoch": self.position.best_epoch,
        }
        return HeadCheckpoint(self.head.config, weights, self.stage1_hash, self.identity, progress_, state)

    def _require_finite(self, what: str, value: Tensor, folder: RunFolder) -> None:
        """Stop unless a value is finite; it is the same in all processes, so that they stop together."""
        if math.isfinite(value.item()):
            return
        kept = (
            f"the last good checkpoint is {folder.last}" if folder.last.is_file() else "no checkpoint was written yet"
        )
        raise TrainingError(
            f"The {what} is {value.item()} at step {self.position.step + 1}; "
            f"{kept}. Lower --learning_rate, or check the features."
        )

    def _stop_requested(self) -> bool:
        flag = torch.tensor(float(self._signal or 0), device=self.device)
        return bool(self.world.total(flag).item())

    def _signals(self) -> Any:
        return _SignalFlag(self)

    def request_stop(self, number: int, _frame: FrameType | None = None) -> None:
        """Finish the step at hand, write a checkpoint and return."""
        self._signal = number

    @property
    def stop_signal(self) -> int | None:
        """The signal that ended `run`, if one did."""
        return self._signal


class _SignalFlag:
    """While entered, SIGTERM and SIGUSR1 ask the trainer to stop."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._trainer.request_stop)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _parameter_names(module: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in module.named_parameters()}
