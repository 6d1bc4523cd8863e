"""`fluxtalk-train` as a user meets it."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result

from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.train.cli import main
from fluxtalk.train.config import TrainConfig

OPTIONS = {
    "--stage1_checkpoint", "--output_dir", "--log_name", "--batch_size", "--epochs", "--num_register_tokens",
    "--num_overlapping_tokens", "--nested_dropout_rate", "--complementary_reg_weight", "--data", "--dim", "--heads",
    "--depth", "--self_attention", "--block_weights", "--dropout", "--feature_dropout", "--token_dropout",
    "--nested_dropout_schedule", "--learning_rate", "--weight_decay", "--warmup_fraction", "--gradient_clip",
    "--ema_decay", "--encode", "--precision", "--eval_every", "--seed", "--cache_dir", "--device", "--experiment_id",
    "--implementation", "--resume", "--debug", "--accum_steps", "--items_per_id", "--complementary_objective",
    "--complementary_objective_weight", "--contrastive", "--nested_draw", "--recipe", "--aggregation",
    "--feature_dtype", "--feature_pca", "--feature_pool", "--compile", "--checkpoint_every", "--init_from",
    "--freeze_registers", "--view_dropout", "--complementary_correlation_weight", "--output_projection", "--config",
    "--allow-code", "--mean_path", "--token_dim", "--k_values", "--maxsim_sharpness", "--patience",
    "--feed_forward",
    "--nested_dims", "--summary_registers", "--mean_path_width", "--regions",
    "--on_bad_item", "--bad_items_limit",
    "--track", "--sweep", "--sweep_minutes", "--hard_negatives",
    "--hard_negative_margin", "--hard_negative_relative_margin", "--hard_negative_max_score",
}  # fmt: skip


def arguments(config: TrainConfig, folder: Path, **changes: object) -> list[str]:
    options = {
        "stage1_checkpoint": config.stage1_checkpoint, "output_dir": folder, "log_name": "run", "batch_size": 32,
        "epochs": 2, "dim": 48, "heads": 4, "eval_every": 1, "cache_dir": config.cache_dir, "device": "cpu", **changes,
    }  # fmt: skip
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def run(*parts: str) -> Result:
    return CliRunner().invoke(main, list(parts))


def test_the_command_line_is_frozen() -> None:
    shown = {spelling for parameter in main.params for spelling in parameter.opts}
    assert shown == {option.replace("_", "-") for option in OPTIONS}


def test_both_spellings_are_accepted_and_one_is_shown() -> None:
    help_ = run("--help").output
    for option in OPTIONS:
        shown = option.replace("_", "-")
        assert len(re.findall(rf"^  {shown}(?![\w-])", help_, re.M)) == 1, option
        assert shown == option or option not in help_
    titles = ["Data", "Head", "Nested dropout", "Losses", "Optimization", "Runtime", "Identity"]
    assert re.findall(r"^([A-Z][a-z ]+):$", help_, re.M) == [*titles, "Options"]
    for spelling in ("--num_register_tokens", "--num-register-tokens"):
        refused = run(spelling, "many")
        assert refused.exit_code == 2
        assert "Invalid value for '--num-register-tokens'" in refused.stderr
    mistyped = run("--num_register_token", "4")
    assert "--num-register-tokens" in mistyped.stderr
    assert "--num_register_tokens" not in mistyped.stderr


def test_the_specified_defaults() -> None:
    defaults = {p.name: p.default for p in main.params}
    assert defaults["batch_size"] == 64
    assert defaults["epochs"] == 100
    assert defaults["num_register_tokens"] == 4
    assert defaults["num_overlapping_tokens"] == 3
    assert defaults["nested_dropout_rate"] == 0.5
    assert defaults["complementary_reg_weight"] == 0.01
    assert defaults["experiment_id"] == "cursor_flux_talk_register_tokens"
    assert defaults["implementation"] == "cursor"
    assert defaults["complementary_objective"] == "none"
    assert defaults["recipe"] == "specified"
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert {p.name for p in main.params} - {"resume", "debug", "help", "config_file", "allow_code"} == fields


def test_a_run_says_what_it_is(train_config: TrainConfig, tmp_path: Path) -> None:
    done = run(*arguments(train_config, tmp_path, implementation="other", experiment_id="mine"))
    assert done.exit_code == 0, done.output
    folder = tmp_path / "run"
    for name in (
        "run.json",
        "train.log",
        "results.json",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    ):
        assert (folder / name).is_file(), name
    lines = (folder / "train.log").read_text().splitlines()
    assert lines
    assert all(" [OTHER] " in line for line in lines)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {record["kind"] for record in records} == {"train", "validation", "test"}
    for record in [*records, json.loads((folder / "results.json").read_text())]:
        assert (record["implementation"], record["experiment_id"]) == ("other", "mine")
        assert record["implementation_version"] == "1.0"
    assert "Experiment: mine" in (folder / "METADATA.txt").read_text()
    again = run(*arguments(train_config, tmp_path))
    assert again.exit_code == 2
    assert "--resume" in again.stderr


def one_sentence(done: Result, code: int, *words: str) -> None:
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, done.stderr
    for word in words:
        assert word in sentences[0]


def test_bad_input_is_one_sentence_and_leaves_nothing(train_config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one_sentence(run(*arguments(train_config, out, stage1_checkpoint="nope.pth")), 1, "nope.pth", "does not exist")
    foreign = tmp_path / "foreign.pth"
    torch.save({"weights": torch.zeros(2)}, foreign)
    one_sentence(run(*arguments(train_config, out, stage1_checkpoint=foreign)), 1, "foreign.pth", "stage 1")
    pickled = tmp_path / "pickled.pth"
    torch.save({"code": Path}, pickled)
    one_sentence(run(*arguments(train_config, out, stage1_checkpoint=pickled)), 1, "pickled.pth")
    one_sentence(run(*arguments(train_config, out, batch_size=1)), 2, "global batch")
    one_sentence(run(*arguments(train_config, out, nested_dropout_rate=1.0)), 2, "nested_dropout_rate")
    one_sentence(run(*arguments(train_config, out, learning_rate="inf")), 2, "--learning-rate is a finite number")
    one_sentence(run(*arguments(train_config, out, seed="9" * 23)), 2, "--seed has 64 bits")
    one_sentence(run(*arguments(train_config, out, num_overlapping_tokens=5)), 2, "num_overlapping_tokens", "1..4")
    table = tmp_path / "pairs.csv"
    table.write_text("image,text\nmissing-1.png,a\nmissing-2.png,b\n")
    one_sentence(run(*arguments(train_config, out, data=table)), 1, "missing-1.png", "missing-2.png")
    assert not out.exists()


def test_nan_loss_names_the_last_good_checkpoint(train_config: TrainConfig, tmp_path: Path) -> None:
    """The head before the first update is good, and no later checkpoint may replace it."""
    wild = {"learning_rate": 100, "weight_decay": 1e25, "warmup_fraction": 0, "checkpoint_every": 1, "epochs": 30}
    done = run(*arguments(train_config, tmp_path, **wild))
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    one_sentence(done, 1, "nan", f"the last good checkpoint is {last}", "Begin another run")
    kept = load_head(last)
    assert (kept.progress["step"], kept.progress["bad_in_a_row"]) == (0, 0)
    assert max(tensor.abs().max().item() for tensor in kept.weights.values()) < 10


LONG: dict[str, Any] = {"epochs": 60, "eval_every": 20, "ema_decay": 0.9}


def terminated(train_config: TrainConfig, folder: Path) -> None:
    """Begin a long run in a process of its own, and send it SIGTERM once it has taken a step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fluxtalk.train", *arguments(train_config, folder, **LONG)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    stopped = load_head(folder / "run" / "checkpoints" / "last.safetensors")
    assert 0 < stopped.progress["step"] < stopped.progress["steps"]


def test_a_signal_writes_a_checkpoint_and_resume_gives_the_uninterrupted_run(
    train_config: TrainConfig, tmp_path: Path
) -> None:
    terminated(train_config, tmp_path / "a")
    resumed = run(*arguments(train_config, tmp_path / "a", **LONG), "--resume")
    assert resumed.exit_code == 0, resumed.output
    whole = run(*arguments(train_config, tmp_path / "b", **LONG))
    assert whole.exit_code == 0, whole.output
    first, second = (load_head(tmp_path / part / "run" / "checkpoints" / "last.safetensors") for part in "ab")
    assert first.progress == second.progress
    for name, tensor in second.weights.items():
        assert torch.equal(first.weights[name], tensor), name
    for name, tensor in second.training_state.items():
        assert torch.equal(first.training_state[name], tensor), name
    changed = run(*arguments(train_config, tmp_path / "a", **{**LONG, "learning_rate": 0.5}), "--resume")
    one_sentence(changed, 2, "--learning-rate")
