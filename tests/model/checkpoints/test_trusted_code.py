"""A checkpoint that names code runs it only for whoever made it, or said so once."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from fluxtalk.artifacts import trusted_code
from fluxtalk.cli import main as fluxtalk
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import CheckpointError
from fluxtalk.export.cli import main as export
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1, save_stage1, trust_code
from fluxtalk.model.encoders import EncoderSpec
from fluxtalk.train.cli import main as train
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.run import fit

HOSTILE = EncoderSpec("module:os:system", {"command": "touch ran"}, 4)


@pytest.fixture
def strangers(stage1: Stage1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that another user made, whose encoder is a shell command; the working folder is empty."""
    monkeypatch.setenv("FLUXTALK_CONFIG_DIR", str(tmp_path / "theirs"))
    path = tmp_path / "stage1.pth"
    image = dataclasses.replace(stage1.modalities["image"], spec=HOSTILE, weights={})
    save_stage1(dataclasses.replace(stage1, modalities={**stage1.modalities, "image": image}), path)
    trusted_code._ALLOWED_HERE.clear()
    monkeypatch.setenv("FLUXTALK_CONFIG_DIR", str(tmp_path / "ours"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return path


def test_reading_a_strangers_checkpoint_runs_nothing_and_building_asks(strangers: Path) -> None:
    stage1 = load_stage1(strangers)
    with pytest.raises(CheckpointError, match=r"stage1\.pth was not made by you .* module:os:system .*--allow-code"):
        stage1.modalities["image"].build()
    stage1.modalities["text"].build()
    assert CliRunner().invoke(fluxtalk, ["inspect", str(strangers)]).exit_code == 0
    assert not os.listdir()


def test_every_command_asks(strangers: Path, table_path: Path, tmp_path: Path) -> None:
    options = ["--stage1-checkpoint", str(strangers), "--data", str(table_path), "--cache-dir", str(tmp_path / "cache")]
    for command, arguments in (
        (train, [*options, "--output-dir", str(tmp_path / "runs"), "--log-name", "one", "--device", "cpu"]),
        (fluxtalk, ["features", "build", *options, "--device", "cpu"]),
    ):
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 1, done.output
        assert "add --allow-code, once, if you trust whoever made it." in done.stderr
    assert not os.listdir()


def test_a_word_once_is_enough_and_is_of_that_content(strangers: Path, tmp_path: Path) -> None:
    trust_code(strangers)
    trusted_code._ALLOWED_HERE.clear()
    assert load_stage1(strangers).modalities["image"].untrusted_file is None
    assert len(list(trusted_code.store().iterdir())) == 1
    # The same file with another command is another content.
    stage1 = load_stage1(strangers)
    spec = dataclasses.replace(HOSTILE, options={"command": "touch other"})
    changed = dataclasses.replace(stage1.modalities["image"], spec=spec)
    other = dataclasses.replace(stage1, modalities={**stage1.modalities, "image": changed})
    assert not trusted_code.is_trusted(other.content_hash())


def test_allow_code_lets_a_command_run_it(strangers: Path, table_path: Path, tmp_path: Path) -> None:
    arguments = ["features", "build", "--stage1-checkpoint", str(strangers), "--data", str(table_path)]
    done = CliRunner().invoke(fluxtalk, [*arguments, "--cache-dir", str(tmp_path / "cache"), "--allow-code"])
    assert "must return a torch.nn.Module" in done.stderr
    assert os.listdir() == ["ran"]


def test_runs_of_ones_own_checkpoint_never_ask_and_elsewhere_they_do(
    train_config: TrainConfig, table_data: PairDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load_stage1(Path(train_config.stage1_checkpoint))
    spec = EncoderSpec("module:fluxtalk.model.encoders:SmallTextEncoder", made.modalities["text"].spec.options, 0)
    text = dataclasses.replace(
        made.modalities["text"], spec=dataclasses.replace(spec, dim=made.modalities["text"].spec.dim)
    )
    path = tmp_path / "own.pth"
    save_stage1(dataclasses.replace(made, modalities={**made.modalities, "text": text}), path)
    config = dataclasses.replace(
        train_config, stage1_checkpoint=str(path), output_dir=str(tmp_path), log_name="run", epochs=1
    )
    assert fit(config).finished
    # The run is given away.
    trusted_code._ALLOWED_HERE.clear()
    monkeypatch.setenv("FLUXTALK_CONFIG_DIR", str(tmp_path / "elsewhere"))
    run, fresh = str(tmp_path / "run"), ["--cache-dir", str(tmp_path / "cache")]
    for command, arguments in (
        (fluxtalk, ["eval", run, *fresh]),
        (fluxtalk, ["baseline", run, *fresh]),
        (export, ["onnx", run, "-o", str(tmp_path / "bundle")]),
    ):
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 1, done.output
        assert "was not made by you on this machine" in done.stderr
    done = CliRunner().invoke(fluxtalk, ["eval", run, *fresh, "--allow-code"])
    assert done.exit_code == 0, done.output
    shutil.rmtree(tmp_path / "cache")
    assert CliRunner().invoke(fluxtalk, ["eval", run, *fresh]).exit_code == 0


def test_a_home_that_cannot_be_written_holds_the_word_for_this_process(
    strangers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLUXTALK_CONFIG_DIR", str(tmp_path / "file"))
    trust_code(strangers)
    assert load_stage1(strangers).modalities["image"].untrusted_file is None


def test_a_home_that_cannot_be_read_holds_the_word_for_this_process(
    strangers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_path: Path, **_: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refused)
    assert not trusted_code.is_trusted("0" * 64)
    trusted_code.trust("0" * 64)
    assert trusted_code.is_trusted("0" * 64)
