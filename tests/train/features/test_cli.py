"""`fluxtalk features` as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from fluxtalk.datasets import PairDataset
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.features.cached import CachedFeatures
from fluxtalk.train.features.cli import build, main
from fluxtalk.train.features.options import CacheOptions
from fluxtalk.train.features.sources import cache_key, fitted_reductions
from tests.train.features.given_features import CPU

BUILD_OPTIONS = {
    "--stage1_checkpoint", "--data", "--splits", "--cache_dir", "--feature_dtype", "--feature_pca", "--feature_pool",
    "--device", "--ray", "--debug", "--allow-code", "--on-bad-item", "--bad-items-limit",
}  # fmt: skip


def run(*parts: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in parts])


def test_the_command_line_is_frozen() -> None:
    shown = {option for parameter in build.params for option in parameter.opts}
    assert shown == {option.replace("_", "-") for option in BUILD_OPTIONS}
    assert list(main.commands) == ["build", "list", "verify"]


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from fluxtalk.train.features.cli import main; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_build_list_verify(stage1: Stage1, stage1_path: Path, table_data: PairDataset, tmp_path: Path) -> None:
    """Training with the same options reads what was built; damage is named."""
    options = CacheOptions("int8", pca=32, pool=2)
    arguments = ["build", "--stage1_checkpoint", stage1_path, "--cache_dir", tmp_path, "--device", "cpu"]
    done = run(
        *arguments, "--splits", "validation,test", "--feature_dtype", "int8", "--feature_pca", 32, "--feature-pool", 2
    )
    assert done.exit_code == 0, done.output
    reductions = fitted_reductions(stage1, table_data, options, tmp_path, CPU, SingleProcess())
    folders = []
    for split in ("validation", "test"):
        for modality in ("image", "text"):
            key = cache_key(stage1, table_data, split, modality, options, reductions[modality])
            folders.append(key.folder(tmp_path))
            source = CachedFeatures(folders[-1], CPU, key)
            assert source.dim == 32
            assert f"{split} {modality}: {len(table_data.split(split).items[modality])} items" in done.output
    assert run(*arguments).exit_code == 0  # the other way to store them, all three splits
    listed = run("list", "--cache_dir", tmp_path)
    assert listed.exit_code == 0
    assert len([line for line in listed.output.splitlines() if " complete " in line]) == 4 + 6
    assert "vectors of 32 int8, pool 2, pca 32" in listed.output
    assert "10 feature caches" in listed.output
    verified = run("verify", "--cache_dir", tmp_path)
    assert verified.exit_code == 0
    assert verified.output.count(" intact ") == 10
    path = folders[0] / "00000.values.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (folders[1] / "manifest.json").unlink()
    damaged = run("verify", "--cache_dir", tmp_path)
    assert damaged.exit_code == 1
    assert damaged.stderr.startswith(f"error: 1 of 10 feature caches are damaged: {folders[0].name}")
    assert "1 shards; building it again goes on from there" in damaged.output
    # A size that is the same is not looked into, unless asked.
    assert run("list", "--cache_dir", tmp_path).exit_code == 0
    os.truncate(path, 100)
    assert run("list", "--cache_dir", tmp_path).exit_code == 1


def test_bad_input_is_one_sentence(stage1_path: Path, tmp_path: Path) -> None:
    options = ("--cache_dir", tmp_path, "--device", "cpu")
    for code, words, parts in (
        (1, "nope.pth does not exist", ("--stage1_checkpoint", tmp_path / "nope.pth")),
        (2, "got 0", ("--stage1_checkpoint", stage1_path, "--feature_pool", 0)),
        (1, "has no holdout items", ("--stage1_checkpoint", stage1_path, "--splits", "holdout")),
        (1, "needs more than", ("--stage1_checkpoint", stage1_path, "--feature_pca", 100, "--feature_pool", 1000)),
    ):
        done = run("build", *options, *parts)
        assert done.exit_code == code, done.output
        assert words in done.stderr
        assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    nothing = run("list", "--cache_dir", tmp_path / "nowhere")
    assert nothing.exit_code == 0
    assert "0 feature caches" in nothing.output
