"""Several processes are one process on the same global batch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fluxtalk.train.config import TrainConfig
from tests.forked import in_processes

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
def steps_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Tensor]]:
    """Number of processes to every case's gradients and parameters, with three modalities of which some samples lack
    one."""
    asked = {2, *[4] * any("test_processes_equal_one[4]" in item.nodeid for item in request.session.items)}
    base = {
        "stage1_checkpoint": "-", "output_dir": "-", "log_name": "-", "batch_size": 16, "epochs": 6, "dim": 16,
        "heads": 2, "dropout": 0.0, "learning_rate": 0.05, "warmup_fraction": 0.0, "device": "cpu",
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("steps")
    cases = folder / "cases.json"
    cases.write_text(json.dumps({name: {**base, **options} for name, options in CASES.items()}))
    outputs = {count: folder / f"{count}.safetensors" for count in (1, *sorted(asked))}
    jobs = [(count, (cases, file)) for count, file in outputs.items()]
    in_processes("tests.train.distributed_steps:in_memory_steps", jobs, folder)
    return {count: load_file(file) for count, file in outputs.items()}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_equal_one(steps_of: dict[int, dict[str, Tensor]], processes: int) -> None:
    alone, together = steps_of[1], steps_of[processes]
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
    configs = {1: one, 2: dataclasses.replace(one, batch_size=16)}
    jobs = []
    for count, config in configs.items():
        (tmp_path / f"{count}.json").write_text(json.dumps(config.to_dict()))
        jobs.append((count, (tmp_path / f"{count}.json", tmp_path / f"{count}.safetensors")))
    in_processes("tests.train.distributed_steps:steps_of_a_run", jobs, tmp_path)
    alone, together = (load_file(tmp_path / f"{count}.safetensors") for count in configs)
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
