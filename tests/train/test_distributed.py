"""Several processes are one process on the same global batch."""

from __future__ import annotations

import dataclasses
import json
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


Steps = dict[tuple[str, int], dict[str, Tensor]]


@pytest.fixture(scope="module")
def steps(request: pytest.FixtureRequest, train_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """Gradients and parameters by what was trained and the number of processes: ``cases``, all of them, with three
    modalities of which some samples lack one; and ``run``, a whole run's."""
    base = {
        "stage1_checkpoint": "-", "output_dir": "-", "log_name": "-", "batch_size": 16, "epochs": 6, "dim": 16,
        "heads": 2, "dropout": 0.0, "learning_rate": 0.05, "warmup_fraction": 0.0, "device": "cpu",
    }  # fmt: skip
    # Nested dropout stays on: its draws are global. Other dropout is drawn per process, so it is off.
    run = dataclasses.replace(train_config, dropout=0.0, learning_rate=0.05, warmup_fraction=0.0, batch_size=32)
    given: dict[tuple[str, int], Any] = {
        (what, count): {name: {**base, **options} for name, options in CASES.items()}
        if what == "cases"
        else dataclasses.replace(run, batch_size=32 // count).to_dict()
        for what, count in (("cases", 1), ("cases", 2), ("run", 1), ("run", 2))
    }
    if any("test_processes_equal_one[4]" in item.nodeid for item in request.session.items):
        given["cases", 4] = given["cases", 1]
    folder = tmp_path_factory.mktemp("steps")
    outputs = {asked: folder / f"{asked[0]}-{asked[1]}.safetensors" for asked in given}
    jobs = []
    for asked, content in given.items():
        file = outputs[asked].with_suffix(".json")
        file.write_text(json.dumps(content))
        jobs.append((asked[1], (file, outputs[asked])))
    in_processes("tests.train.distributed_steps:steps", jobs, folder)
    return {asked: load_file(file) for asked, file in outputs.items()}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_equal_one(steps: Steps, processes: int) -> None:
    alone, together = steps["cases", 1], steps["cases", processes]
    assert set(alone) == set(together)
    for case in CASES:
        for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-10)):
            for kind in ("gradient", "parameter"):
                names = [name for name in sorted(alone) if name.startswith(f"{case}.{dtype}.{kind}.")]
                expected, got = (torch.cat([t[n].flatten() for n in names]) for t in (alone, together))
                assert expected.norm() > 1e-3
                assert (got - expected).norm() <= tolerance * expected.norm(), (case, dtype, kind)


def test_a_run_of_two_processes_equals_one(steps: Steps) -> None:
    alone, together = steps["run", 1], steps["run", 2]
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
