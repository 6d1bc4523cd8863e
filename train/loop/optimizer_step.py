"""The optimizer step: average gradients over processes, clip, AdamW, moving average; and their state as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fluxtalk.model.head.regions import Regions
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.losses.register_loss import RegisterTokenLoss
from fluxtalk.model.process_group import ProcessGroup
from fluxtalk.train.config import TrainConfig

MakeOptimizer = Callable[[nn.Module, TrainConfig], torch.optim.Optimizer]

_STORED = "optimiser"
"""Prefix of the optimizer's tensors in a checkpoint: checkpoints from before this spelling changed must resume."""


def adamw(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build AdamW over the trainable parameters of a module; matrices decay.

    Vectors, the temperature and the places of regions do not: a region whose numbers are 0 is the whole item.
    """
    places = {id(part.places) for part in module.modules() if isinstance(part, Regions)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    decaying = [p for p in parameters if p.ndim > 1 and id(p) not in places]
    others = [p for p in parameters if p.ndim <= 1 or id(p) in places]
    return torch.optim.AdamW(
        [{"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Linear warm-up, then a cosine to 0."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class OptimizerStep:
    """Apply gradients to a head and its loss.

    Args:
        steps: steps of the whole run; the learning rate depends on the step alone, so that resuming needs no state.
        optimizer: `adamw`, unless a test passes another.
    """

    def __init__(
        self,
        head: TokenHead,
        loss: RegisterTokenLoss,
        config: TrainConfig,
        group: ProcessGroup,
        steps: int,
        optimizer: MakeOptimizer = adamw,
    ) -> None:
        self.head = head
        self.loss = loss
        self.config = config
        self.group = group
        self.steps = steps
        both = nn.ModuleDict({"head": head, "loss": loss})
        self.optimizer = optimizer(both, config)
        self._names: dict[Tensor, str] = {p: name for name, p in both.named_parameters()}
        self._trained = [p for p in both.parameters() if p.requires_grad]
        # Only float16 needs a scaler: its small gradients would be 0.
        self.scaler = torch.amp.GradScaler(head.device.type, enabled=config.precision == "fp16")
        self.average = {n: p.detach().clone() for n, p in head.state_dict().items()} if config.ema_decay else None

    def learning_rate(self, step: int) -> float:
        """Compute the learning rate of step ``step`` (from 0)."""
        return self.config.learning_rate * learning_rate_factor(step, self.steps, self.config.warmup_fraction)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Back-propagate a loss, scaled in float16."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def reduce_and_clip(self) -> Tensor:
        """Average the gradients over the processes, then clip them.

        Returns:
            Their norm before clipping, the same in every process.
        """
        if self.group.size > 1:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained]
            # One exchange for all gradients: a head has few parameters, in many small tensors.
            flat = self.group.all_reduce_sum(torch.cat([g.reshape(-1) for g in gradients])) / self.group.size
            for parameter, part in zip(
                self._trained, torch.split(flat, [p.numel() for p in self._trained]), strict=True
            ):
                parameter.grad = part.view_as(parameter)
        self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(self._trained, self.config.gradient_clip)

    def apply(self, step: int) -> None:
        """Take step ``step`` (from 0); a gradient scaler leaves out a step whose gradient overflowed."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss.clamp_temperature()
        if self.average is not None:
            # A young average decays faster, or it would keep the initialization.
            decay = min(self.config.ema_decay, (2 + step) / (11 + step))
            for name, value in self.head.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def skip(self) -> None:
        """Leave out a step whose loss or gradient is not finite."""
        if self.scaler.is_enabled():
            self.scaler.update()
        self.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Return all tensors but the head's weights that resuming needs."""
        state = {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                state[f"{_STORED}.{self._names[parameter]}.{key}"] = torch.as_tensor(value)
        if self.average is not None:
            state |= {f"average.{name}": value for name, value in self.average.items()}
        if self.scaler.is_enabled():
            # As float64, which holds both exactly.
            values = self.scaler.state_dict()
            state["scaler"] = torch.tensor([values["scale"], values["_growth_tracker"]], dtype=torch.float64)
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.loss.load_state_dict(_part(state, "loss."))
        optimizer_state = self.optimizer.state_dict()
        order = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(order):
            found = _part(state, f"{_STORED}.{self._names[parameter]}.")
            if found:
                optimizer_state["state"][index] = found
        self.optimizer.load_state_dict(optimizer_state)
        if self.average is not None:
            self.average = {name: state[f"average.{name}"].to(self.head.device) for name in self.average}
        if self.scaler.is_enabled():
            scale, tracker = state["scaler"].tolist()
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
