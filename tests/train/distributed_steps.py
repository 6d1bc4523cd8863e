"""Run by torchrun in test_distributed.py: gradients of the first step, and parameters after five SGD steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from fluxtalk.artifacts.files import Identity
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import join_process_group
from fluxtalk.train.inputs import read_inputs
from fluxtalk.train.run import build_trainer


def main(config_file: Path, output: Path) -> None:
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


def thread_names() -> list[str]:
    """List the names of this process's threads; empty if the system has no /proc."""
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
