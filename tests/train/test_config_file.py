"""`fluxtalk-train --config`: files of options, what overrides them, and a run's own run.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fluxtalk.errors import UsageError
from fluxtalk.train.cli import main
from fluxtalk.train.config import RECIPES, TrainConfig
from fluxtalk.train.config_file import merge_options, read_options

REQUIRED: dict[str, Any] = {"stage1_checkpoint": "stage1.pth", "output_dir": "runs", "log_name": "run"}
EVERY_TYPE = """
stage1_checkpoint = "stage1.pth"
output_dir = "runs"
log_name = "run"
epochs = 7
learning_rate = 1
self_attention = true
contrastive = "sigmoid"
"""


def run(*parts: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in parts])


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_toml_json_and_a_run_say_the_same(tmp_path: Path) -> None:
    config = merge_options(read_options(written(tmp_path / "a.toml", EVERY_TYPE)), {})
    assert config == TrainConfig(**REQUIRED, epochs=7, learning_rate=1.0, self_attention=True, contrastive="sigmoid")
    run_json = {"format": "fluxtalk.run", "schema_version": 1, "options": config.to_dict(), "facts": {"steps": 3}}
    for content in (config.to_dict(), run_json):
        path = written(tmp_path / "b.json", json.dumps(content))
        assert merge_options(read_options(path), {}) == config


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "epoch = 3", "sets epoch, which is not an option of fluxtalk-train; did you mean epochs?"),
        ("a.toml", "batch-size = 3", "did you mean batch_size?"),
        ("a.toml", "resume = true", "sets resume, which is not an option"),
        ("a.toml", "zzz = 3", "--help lists them"),
        ("a.toml", 'epochs = "3"', "a.toml cannot be used: --epochs is an integer; got '3'"),
        ("a.toml", "epochs = 3.0", "--epochs is an integer; got 3.0"),
        ("a.toml", "[model]\ndim = 3", "sets model, which is not an option"),
        ("a.toml", "epochs = = 3", "is not valid TOML"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "[1]", "is not an object of options"),
        ("a.json", '{"self_attention": 1}', "--self-attention is True or False; got 1"),
        ("a.yaml", "epochs: 3", "is a .toml or .json file; got"),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = written(tmp_path / name, text)
    with pytest.raises(UsageError) as caught:
        read_options(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    done = run("--config", path)
    assert (done.exit_code, done.stderr) == (2, f"error: {caught.value}\n")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = run("--config", tmp_path / "none.toml")
    assert (done.exit_code, done.stderr) == (
        2,
        f"error: The file {tmp_path / 'none.toml'} of --config does not exist; check the path.\n",
    )
    done = run("--config", written(tmp_path / "a.toml", 'output_dir = "runs"'), "--epochs", 3)
    assert done.exit_code == 2
    assert "needs --stage1-checkpoint, --log-name; type it" in done.stderr
    assert "needs --stage1-checkpoint, --output-dir, --log-name" in run().stderr


def test_later_sources_win() -> None:
    """Defaults, the file's recipe, the file, a typed recipe, typed options."""
    recommended, name = RECIPES["recommended"], "mean_path"
    file = {**REQUIRED, "recipe": "recommended", "dropout": 0.25, "epochs": 3}
    plain = merge_options(file, {})
    assert (plain.recipe, plain.dropout, plain.epochs) == ("recommended", 0.25, 3)
    assert getattr(plain, name) == recommended[name]
    typed = merge_options(file, {"dropout": 0.5, "epochs": 5})
    assert (typed.recipe, typed.dropout, typed.epochs) == ("recommended", 0.5, 5)
    whole = TrainConfig(**REQUIRED, dropout=0.25, epochs=3).to_dict()
    over = merge_options(whole, {"recipe": "recommended", "token_dropout": 0.0})
    assert {option: getattr(over, option) for option in recommended} == {**recommended, "token_dropout": 0.0}
    assert (over.recipe, over.epochs) == ("recommended", 3)
    other = merge_options(plain.to_dict(), {"recipe": "private"})
    assert (other.aggregation, other.complementary_objective) == ("mean", "contrast")
    back = merge_options(plain.to_dict(), {"recipe": "specified"})
    assert back == TrainConfig(**REQUIRED, epochs=3)
    with pytest.raises(
        UsageError, match="--recipe is one of specified, recommended, difference, regions, private; got 'other'"
    ):
        merge_options({**REQUIRED, "recipe": "other"}, {})


def test_a_runs_own_record_continues_it_or_begins_another(train_config: TrainConfig, tmp_path: Path) -> None:
    options = {**train_config.to_dict(), "output_dir": str(tmp_path), "epochs": 1, "self_attention": True}
    first = run("--config", written(tmp_path / "a.json", json.dumps(options)), "--log_name", "first")
    assert first.exit_code == 0, first.output
    recorded = tmp_path / "first" / "run.json"
    assert json.loads(recorded.read_text())["options"] == {**options, "log_name": "first"}
    again = run("--config", recorded)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    assert run("--config", recorded, "--resume").exit_code == 0
    changed = run("--config", recorded, "--resume", "--learning-rate", "0.5")
    assert changed.exit_code == 2
    assert "0.001 became 0.5" in changed.stderr
    second = run("--config", recorded, "--log-name", "second", "--no-self-attention", "--dim", 32)
    assert second.exit_code == 0, second.output
    expected = {**options, "log_name": "second", "self_attention": False, "dim": 32}
    assert json.loads((tmp_path / "second" / "run.json").read_text())["options"] == expected
