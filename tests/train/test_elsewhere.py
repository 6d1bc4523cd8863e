"""A run is looked at again from another working directory, and after its project was moved."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from fluxtalk.datasets import PairDataset
from fluxtalk.errors import CheckpointError, DataError, UsageError
from fluxtalk.export.cli import main as export_main
from fluxtalk.model.checkpoints.stage1 import load_stage1, save_stage1
from fluxtalk.model.checkpoints.trained_run import TrainedRun, open_run
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.cli import main as train_main
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.inputs import inputs_of_run
from fluxtalk.train.results.evaluate_cli import main as eval_main
from fluxtalk.train.run import fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["named-by-stage-1", "named-by-data"])
def made_once(
    request: pytest.FixtureRequest,
    train_config: TrainConfig,
    table_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with data, stage 1 and a run, all named relative to it."""
    root = tmp_path_factory.mktemp("elsewhere") / "project"
    shutil.copytree(table_path.parent, root / "data")
    (root / "encoders").mkdir()
    by_stage1 = request.param == "named-by-stage-1"
    stage1 = load_stage1(Path(train_config.stage1_checkpoint))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        data = "data/pairs.csv" if by_stage1 else None
        save_stage1(dataclasses.replace(stage1, data=data), Path("encoders/stage1.pth"))
        config = dataclasses.replace(
            train_config,
            stage1_checkpoint="encoders/stage1.pth",
            data=None if by_stage1 else "data/pairs.csv",
            output_dir="runs",
            log_name="run",
            epochs=1,
            dim=16,
        )
        assert fit(config).finished
    return root


@pytest.fixture
def project(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give that folder, and put it back afterwards as it was; the working directory is another one."""
    kept = shutil.copytree(made_once, tmp_path / "kept")
    monkeypatch.chdir(tmp_path)
    yield made_once
    shutil.rmtree(made_once.parent)
    shutil.copytree(kept, made_once)


def _evaluated(run: Path) -> Result:
    return CliRunner().invoke(eval_main, [str(run), "--json"])


def _require_same(root: Path, run: Path) -> None:
    """Require that what is scored, trained on or exported is what training saw."""
    results = json.loads((run / "results.json").read_text())
    done = _evaluated(run)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["recall"] == results["recall"]
    assert "recall_unseen" in json.loads(done.stdout)
    assert open_run(run).data == str(root / "data" / "pairs.csv")
    _, inputs = inputs_of_run(run, None, None, SingleProcess(), CPU)
    facts = json.loads((run / "run.json").read_text())["facts"]
    assert inputs.dataset.content_hash == facts["data_hash"]


def test_another_working_directory(project: Path) -> None:
    _require_same(project, project / "runs" / "run")
    _require_same(project, Path(os.path.relpath(project / "runs" / "run")))


def test_a_project_that_was_moved(project: Path) -> None:
    moved = project.rename(project.parent / "moved")
    _require_same(moved, moved / "runs" / "run")


def test_a_run_that_was_moved_alone(project: Path) -> None:
    alone = (project / "runs" / "run").rename(project.parent / "alone")
    _require_same(project, alone)


def test_export_reads_the_data_that_training_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export is stopped before it writes graphs."""
    seen = []

    def stop(run: TrainedRun, dataset: PairDataset, *_: object) -> None:
        seen.append(dataset.content_hash == run.description.info.data_hash)
        raise UsageError("far enough")

    monkeypatch.setattr("fluxtalk.export.write_bundle.write_bundle", stop)
    moved = project.rename(project.parent / "moved")
    done = CliRunner().invoke(export_main, ["onnx", str(moved / "runs" / "run"), "-o", "bundle"])
    assert (done.stderr, seen) == ("error: far enough\n", [True])


def test_resuming_from_elsewhere(project: Path) -> None:
    """The same data under another name is the same; other data is refused."""
    options = json.loads((project / "runs" / "run" / "run.json").read_text())["options"]
    config = dataclasses.replace(
        TrainConfig.from_dict(options),
        stage1_checkpoint=os.path.relpath(project / "encoders" / "stage1.pth"),
        output_dir=os.path.relpath(project / "runs"),
        data=options["data"] and os.path.relpath(project / "data" / "pairs.csv"),
    )
    assert fit(config, resume=True).finished
    table = project / "data" / "pairs.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UsageError, match=r"on the data it began with.*pairs\.csv holds something else"):
        fit(config, resume=True)


def test_what_is_gone_is_said_with_the_places_that_were_tried(project: Path) -> None:
    run = project / "runs" / "run"
    by_data = json.loads((run / "run.json").read_text())["options"]["data"] is not None
    (project / "data").rename(project / "hidden")
    expected = rf"not at {project}/data/pairs\.csv" if by_data else r"which is `data` of .*stage1\.pth, does not exist"
    with pytest.raises(DataError, match=expected):
        inputs_of_run(run, None, None, SingleProcess(), CPU)
    (project / "encoders" / "stage1.pth").unlink()
    with pytest.raises(CheckpointError, match=rf"not at {project}/encoders/stage1\.pth any more.*--stage1-checkpoint"):
        inputs_of_run(run, None, None, SingleProcess(), CPU)
    assert _evaluated(run).exit_code == 1


def test_training_finds_the_data_of_a_checkpoint_that_moved_with_it(
    train_config: TrainConfig, table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fluxtalk-train` in another folder, and the sentence where the data is gone."""
    stage1 = load_stage1(Path(train_config.stage1_checkpoint))
    shutil.copytree(table_path.parent, tmp_path / "old" / "data")
    save_stage1(dataclasses.replace(stage1, data=str(tmp_path / "old/data/pairs.csv")), tmp_path / "old" / "stage1.pth")
    new = (tmp_path / "old").rename(tmp_path / "new")
    assert load_stage1(new / "stage1.pth").data == str(new / "data" / "pairs.csv")
    (new / "data").rename(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    arguments = ["--stage1_checkpoint", "new/stage1.pth", "--output_dir", "runs", "--log_name", "x", "--device", "cpu"]
    done = CliRunner().invoke(train_main, arguments)
    assert done.exit_code == 1
    assert f"{tmp_path}/old/data/pairs.csv, which is `data` of new/stage1.pth, does not exist" in done.stderr
    done = CliRunner().invoke(train_main, [*arguments, "--data", "pairs.csv"])
    assert f"The table {tmp_path}/pairs.csv does not exist; check --data." in done.stderr
