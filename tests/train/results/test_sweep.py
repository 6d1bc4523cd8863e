"""A sweep: successive halving by validation, the same under a seed, going on where it ended, and within its minutes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fluxtalk.artifacts.files import Identity
from fluxtalk.artifacts.run import RunFolder, read_run_json
from fluxtalk.errors import ArtifactError, UsageError
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.train import TrainConfig, fit
from fluxtalk.train.engine import Trainer
from fluxtalk.train.results.baseline import measure_baseline
from fluxtalk.train.sweep import SWEPT, Sweep, before_sweep
from tests.train.trainers import CONFIG, make_trainer

SMALL = dataclasses.replace(CONFIG, sweep="small", epochs=9, depth=1, self_attention=False)


def spread(head: TokenHead) -> dict[str, Any]:
    """A score that depends on everything that a candidate changes."""
    return {"score": sum(p.detach().std().item() for p in head.parameters() if p.numel() > 1)}


class Counted:
    """Builds trainers, and remembers their options."""

    def __init__(self) -> None:
        self.configs: list[TrainConfig] = []

    def __call__(self, config: TrainConfig) -> Trainer:
        self.configs.append(config)
        return make_trainer(config)


def swept(file: Path, config: TrainConfig = SMALL) -> tuple[Sweep, Counted, list[str]]:
    sweep, make = Sweep(config, file), Counted()
    said: list[str] = []
    sweep.run(make, spread, Identity(), said.append)
    return sweep, make, said


def test_the_best_third_trains_longer_and_the_best_is_chosen(tmp_path: Path) -> None:
    sweep, make, said = swept(tmp_path / "sweep.json")
    first, second = ([t for t in sweep.trials if t.round == number] for number in (0, 1))
    assert (len(first), len(second), len(make.configs)) == (9, 3, 12)
    assert first[0].options == {name: getattr(SMALL, name) for name in SWEPT}
    assert {t.epochs for t in first} <= {1}
    assert {t.epochs for t in second} <= {1, 3}
    best = sorted(first, key=lambda t: -t.rank)[:3]
    assert [t.options for t in second] == [t.options for t in best]
    winner = max(second, key=lambda t: t.rank)
    assert sweep.chosen == winner.options
    assert {n: getattr(sweep.result(), n) for n in SWEPT} == winner.options
    assert all(config.epochs <= SMALL.epochs for config in make.configs)
    assert "sweep, round 2: 3 of 3 tried, best" in said[1]
    assert json.loads((tmp_path / "sweep.json").read_text())["chosen"] == winner.options


def test_the_seed_decides_and_what_was_tried_is_not_tried_again(tmp_path: Path) -> None:
    sweep, _, _ = swept(tmp_path / "one.json")
    again, make, _ = swept(tmp_path / "two.json")
    assert [(t.options, t.score) for t in again.trials] == [(t.options, t.score) for t in sweep.trials]
    record = json.loads((tmp_path / "one.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps({**record, "trials": record["trials"][:7], "chosen": None}))
    resumed, make, _ = swept(tmp_path / "one.json")
    assert len(make.configs) == 5
    assert resumed.chosen == sweep.chosen
    _, make, _ = swept(tmp_path / "one.json", dataclasses.replace(SMALL, dim=32))
    assert len(make.configs) == 12
    assert Sweep(dataclasses.replace(SMALL, seed=1), tmp_path / "new.json").candidates() != sweep.candidates()


def test_its_minutes_end_it_and_it_says_so(tmp_path: Path) -> None:
    sweep, make, said = swept(tmp_path / "sweep.json", dataclasses.replace(SMALL, sweep_minutes=1e-9))
    assert len(make.configs) in (1, 2)  # a trial of less than 0.05 s counts as none
    assert sweep.ended_by_budget
    assert sweep.chosen == max(sweep.trials, key=lambda t: t.rank).options
    assert "--sweep-minutes 1e-09 ended the sweep before it had tried all" in said[-1]
    assert json.loads((tmp_path / "sweep.json").read_text())["ended_by_budget"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is not the record of a sweep; remove it"):
        Sweep(SMALL, tmp_path / "sweep.json")


def test_a_run_trains_what_its_sweep_chose_and_so_does_its_baseline(train_config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(train_config, output_dir=str(tmp_path), sweep="small", eval_every=3)
    result = fit(config)
    assert result.finished
    record = json.loads(result.folder.sweep.read_text())
    options = read_run_json(result.folder.root)["options"]
    assert {name: options[name] for name in SWEPT} == record["chosen"]
    assert {name: getattr(config, name) for name in SWEPT} == record["began_with"]
    assert "sweep, round 1: 9 of 9 tried" in result.folder.log.read_text()
    # A finished run resumes with the options that were typed.
    assert fit(config, resume=True).finished
    with pytest.raises(UsageError, match="--weight-decay"):
        fit(dataclasses.replace(config, weight_decay=0.77), resume=True)
    measure_baseline(result.folder.root, "linear", None, None, "cpu")
    of_baseline = json.loads(RunFolder(result.folder.root).baseline("linear").sweep.read_text())
    assert len(of_baseline["trials"]) == len(record["trials"])
    began = before_sweep(TrainConfig.from_dict(options), result.folder.sweep)
    assert of_baseline["began_with"]["learning_rate"] == began.learning_rate == config.learning_rate
