"""Run by test_distributed under torchrun: gradients and five SGD steps of several options, as tensors."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import join_process_group
from fluxtalk.train.loop.optimizer_step import OptimizerStep
from tests.train.in_memory import in_memory_trainer, three_modalities


def main(cases_file: Path, output: Path) -> None:
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
