"""Several processes are one process on the same global batch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fluxtalk.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]


def steps(config: TrainConfig, processes: int, folder: Path) -> dict[str, Tensor]:
    """Gradients and parameters of `distributed_steps` under torchrun."""
    file, output = folder / f"{processes}.json", folder / f"{processes}.safetensors"
    file.write_text(json.dumps(config.to_dict()))
    return torchrun(processes, "tests.train.distributed_steps", file, output)


def torchrun(processes: int, module: str, file: Path, output: Path) -> dict[str, Tensor]:
    """The tensors that a module writes."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"),
            *("-m", module, str(file), str(output)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tensors: dict[str, Tensor] = load_file(output)
    return tensors


CASES: dict[str, dict[str, Any]] = {
    "specified": {},
    "contrast": {"complementary_objective": "contrast", "token_dropout": 0.3, "items_per_id": 2},
    "reconstruction-all-k": {"complementary_objective": "reconstruction", "nested_draw": "all"},
    # One row of four processes: the other item of its id is in another process.
    "difference": {"complementary_objective": "difference", "batch_size": 4, "items_per_id": 2, "token_dropout": 0.3},
    "sigmoid-one-k": {"contrastive": "sigmoid", "nested_draw": "batch", "weight_decay": 0.0},
    "maxsim-accumulated": {"aggregation": "maxsim", "batch_size": 8, "accum_steps": 2, "token_dropout": 0.3},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return in_memory_steps(1, tmp_path_factory.mktemp("alone"))


def in_memory_steps(processes: int, folder: Path) -> dict[str, Tensor]:
    """Every case's gradients and parameters under torchrun, with three modalities of which some samples lack one."""
    base = {
        "stage1_checkpoint": "-", "output_dir": "-", "log_name": "-", "batch_size": 16, "epochs": 6, "dim": 16,
        "heads": 2, "dropout": 0.0, "learning_rate": 0.05, "warmup_fraction": 0.0, "device": "cpu",
    }  # fmt: skip
    (folder / "cases.json").write_text(json.dumps({name: {**base, **options} for name, options in CASES.items()}))
    return torchrun(processes, "tests.train.in_memory_steps", folder / "cases.json", folder / "steps.safetensors")


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_one(alone: dict[str, Tensor], tmp_path: Path, processes: int) -> None:
    together = in_memory_steps(processes, tmp_path)
    assert set(alone) == set(together)
    for case in CASES:
        for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-10)):
            for kind in ("gradient", "parameter"):
                names = [name for name in sorted(alone) if name.startswith(f"{case}.{dtype}.{kind}.")]
                expected, got = (torch.cat([t[n].flatten() for n in names]) for t in (alone, together))
                assert expected.norm() > 1e-3
                assert (got - expected).norm() <= tolerance * expected.norm(), (case, dtype, kind)


def test_two_processes_equal_one(train_config: TrainConfig, tmp_path: Path) -> None:
    # Nested dropout stays on: its draws are global. Other dropout is drawn per process, so it is off.
    one = dataclasses.replace(train_config, dropout=0.0, learning_rate=0.05, warmup_fraction=0.0, batch_size=32)
    alone = steps(one, 1, tmp_path)
    together = steps(dataclasses.replace(one, batch_size=16), 2, tmp_path)
    assert set(alone) == set(together)
    for kind in ("gradient", "parameter"):
        names = [name for name in sorted(alone) if name.startswith(kind)]
        expected = torch.cat([alone[name].flatten() for name in names])
        got = torch.cat([together[name].flatten() for name in names])
        assert expected.norm() > 1e-3
        assert (got - expected).norm() <= 1e-5 * expected.norm(), kind
        # And no tensor hides in the norm of all: what float32 sums in another order may differ by is far below this.
        for name in names:
            assert (together[name] - alone[name]).norm() <= 1e-4 * alone[name].norm() + 1e-7, name


@pytest.mark.parametrize("processes", [2])
def test_torchrun_trains_with_the_real_command(train_config: TrainConfig, tmp_path: Path, processes: int) -> None:
    options = {"batch_size": 16, "epochs": 2, "dim": 48, "heads": 4, "eval_every": 1, "device": "cpu"}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"),
        *("-m", "fluxtalk.train", "--stage1_checkpoint", train_config.stage1_checkpoint),
        *("--output_dir", str(tmp_path), "--log_name", "run", "--cache_dir", str(train_config.cache_dir)),
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    # The first process alone talks.
    assert done.stdout.count("test recall of the best head") == 1
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["facts"]["processes"] == processes
    assert config["facts"]["global_batch"] == 32
