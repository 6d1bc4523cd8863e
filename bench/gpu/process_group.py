"""Run by torchrun in `bench.gpu.cli`: training steps in a process group of one, against steps without a group.

With one process the sums and gathers of NCCL move nothing, but they run; so the numbers must be equal, up to what
``bench.gpu.agreement`` allows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from bench.gpu.training import largest_difference
from fluxtalk.artifacts.files import Identity, write_json
from fluxtalk.model.process_group import ProcessGroup, SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.distributed import TorchProcessGroup
from fluxtalk.train.inputs import read_inputs
from fluxtalk.train.run import build_trainer

_STEPS = 20


def main(config_file: Path, output: Path) -> None:
    """Write the largest difference of a parameter after the steps, and how long they took.

    Raises:
        RuntimeError: the parameters are not finite.
    """
    config = TrainConfig.from_dict(json.loads(config_file.read_text()))
    device = torch.device("cuda", 0) if config.device == "cuda" else torch.device("cpu")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    try:
        groups: dict[str, ProcessGroup] = {"group": TorchProcessGroup(), "alone": SingleProcess()}
        parameters, seconds = {}, {}
        for name, group in groups.items():
            trainer = build_trainer(config, read_inputs(config, group, device), group, Identity())
            started = time.perf_counter()
            for _ in range(_STEPS):
                trainer.step()
            parameters[name] = [p.detach().float().cpu() for p in trainer.step_module.parameters()]
            seconds[name] = time.perf_counter() - started
        largest = largest_difference(zip(parameters["group"], parameters["alone"], strict=True))
    finally:
        dist.destroy_process_group()
    write_json(output, {"backend": backend, "steps": _STEPS, "largest_difference": largest, "seconds": seconds})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
