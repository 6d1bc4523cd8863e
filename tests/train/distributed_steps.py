"""Run by each of several processes: gradients of the first step and parameters after five; or a resumed run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fluxtalk.artifacts.files import Identity
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import join_process_group
from fluxtalk.train.inputs import read_inputs
from fluxtalk.train.loop.optimizer_step import OptimizerStep
from fluxtalk.train.run import build_trainer, fit
from tests.train.in_memory import in_memory_trainer, three_modalities


def steps(file: Path, output: Path) -> None:
    """Take the steps of the options in ``file``: of one run, or of named cases on data in memory."""
    (steps_of_a_run if "stage1_checkpoint" in json.loads(file.read_text()) else in_memory_steps)(file, output)


def steps_of_a_run(config_file: Path, output: Path) -> None:
    """Write ``gradient.*`` and ``parameter.*`` of the head and the temperature."""
    config = TrainConfig.from_dict(json.loads(config_file.read_text()))
    with join_process_group("cpu") as (group, device):
        trainer = build_trainer(
            config,
            read_inputs(config, group, device),
            group,
            Identity(),
            optimizer=lambda module, c: torch.optim.SGD(module.parameters(), lr=c.learning_rate),
        )
        trainer.step_module.train()
        trainer.gradients(0)
        trainer.optimizer_step.reduce_and_clip()
        tensors = {
            f"gradient.{n}": p.grad.clone() for n, p in trainer.step_module.named_parameters() if p.grad is not None
        }
        for _ in range(5):
            trainer.step()
        tensors |= {f"parameter.{n}": p.detach().clone() for n, p in trainer.step_module.named_parameters()}
        if group.rank == 0:
            save_file(tensors, output)
    # A group that is left for good has no thread that could get into the way of the interpreter's end.
    left = [name for name in thread_names() if "gloo" in name]
    assert not left, left


def resume(config_file: Path) -> None:
    """Go on with a run."""
    assert fit(TrainConfig.from_dict(json.loads(config_file.read_text())), resume=True).finished


def thread_names() -> list[str]:
    """List the names of this process's threads; empty if the system has no /proc."""
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]


def in_memory_steps(cases_file: Path, output: Path) -> None:
    """``cases_file``: case name to options for 8 rows of one process; more processes share them."""
    cases = {name: TrainConfig.from_dict(options) for name, options in json.loads(cases_file.read_text()).items()}
    tensors: dict[str, Tensor] = {}
    with join_process_group("cpu") as (group, _):
        for name, config in cases.items():
            shared = dataclasses.replace(config, batch_size=config.batch_size // group.size)
            for dtype in (torch.float32, torch.float64):
                trainer = in_memory_trainer(shared, three_modalities(), group, dtype)
                trainer.loss.to(dtype)
                trainer.optimizer_step = OptimizerStep(
                    trainer.head, trainer.loss, shared, group, trainer.steps,
                    lambda module, c: torch.optim.SGD(module.parameters(), lr=c.learning_rate),
                )  # fmt: skip
                trainer.step_module.train()
                trainer.gradients(0)
                trainer.optimizer_step.reduce_and_clip()
                prefix = f"{name}.{'float64' if dtype == torch.float64 else 'float32'}"
                for parameter_name, p in trainer.step_module.named_parameters():
                    gradient = torch.zeros_like(p) if p.grad is None else p.grad
                    tensors[f"{prefix}.gradient.{parameter_name}"] = gradient.clone()
                for _ in range(5):
                    _, bad = trainer.step()
                    assert bad is None
                for parameter_name, p in trainer.step_module.named_parameters():
                    tensors[f"{prefix}.parameter.{parameter_name}"] = p.detach().clone()
        if group.rank == 0:
            save_file(tensors, output)
