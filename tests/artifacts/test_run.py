"""run.json as earlier versions wrote it, and as it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fluxtalk.artifacts.run import RunFolder, read_description, read_run_json
from fluxtalk.errors import ArtifactError
from fluxtalk.train.config import TrainConfig

OPTIONS = {
    "stage1_checkpoint": "stage1.pth", "output_dir": "runs", "log_name": "run", "batch_size": 16, "accum_steps": 1,
    "items_per_id": 1, "epochs": 1, "num_register_tokens": 4, "num_overlapping_tokens": 3, "nested_dropout_rate": 0.5,
    "complementary_reg_weight": 0.01, "complementary_objective": "none", "complementary_objective_weight": 1.0,
    "complementary_correlation_weight": 1.0, "view_dropout": 0.8, "contrastive": "infonce",
    "nested_draw": "independent", "recipe": "specified", "data": None, "dim": 16, "heads": 2, "depth": 1,
    "self_attention": False, "block_weights": "shared", "output_projection": "shared", "dropout": 0.1,
    "feature_dropout": 0.0, "token_dropout": 0.0, "nested_dropout_schedule": "linear", "aggregation": "mean",
    "learning_rate": 0.001, "weight_decay": 0.1, "warmup_fraction": 0.1, "gradient_clip": 1.0, "ema_decay": 0.0,
    "encode": "cache", "feature_dtype": "fp16", "feature_pca": 0, "feature_pool": 1, "precision": "fp32",
    "compile": False, "checkpoint_every": 0, "init_from": None, "freeze_registers": False, "eval_every": 1, "seed": 0,
    "cache_dir": "cache", "device": "cpu", "experiment_id": "cursor_flux_talk_register_tokens",
    "implementation": "cursor",
}  # fmt: skip
WRITTEN: dict[str, Any] = {
    "format": "fluxtalk.run",
    "schema_version": 1,
    "experiment_id": "cursor_flux_talk_register_tokens",
    "implementation": "cursor",
    "implementation_version": "1.0",
    "git_revision": None,
    "options": OPTIONS,
    "facts": {
        "data": "/project/data",
        "data_absolute": "/project/data",
        "data_relative": "../../data",
        "data_hash": "45239c721e9d18a6e79642051498e5e9272d886305b7c511b8313e36828da674",
        "stage1_hash": "9923b15a67c765294728fe52d57a49ce8b237a9974bcc531acb9140066bfe6ac",
        "encoder_hashes": {"left": "34963dcd", "right": "34963dcd"},
        "stage1_checkpoint": "/project/stage1.pth",
        "stage1_relative": "../../stage1.pth",
        "training_ids": 50,
        "processes": 1,
        "global_batch": 16,
        "steps": 3,
        "parameters": 3544,
        "device": "cpu",
    },
    "environment": {"python": "3.11.7", "torch": "2.13.0+cpu", "cuda": None},
}
"""The content that version 0.1.0 wrote on 2026-11-29, before `RunInfo` had its name."""


def written(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "run.json").write_text(json.dumps(content))
    return folder


LATER = {
    "bad_items_limit": 0.01, "feed_forward": 4, "hard_negatives": 0, "hard_negative_margin": 0.0,
    "hard_negative_relative_margin": 0.05, "hard_negative_max_score": 1.0, "k_values": "", "maxsim_sharpness": 0.0,
    "mean_path": "none", "mean_path_width": 4, "nested_dims": "", "on_bad_item": "fail", "patience": 0, "regions": "",
    "sweep": "none",
    "summary_registers": 1, "sweep_minutes": 30.0, "token_dim": 0, "track": "",
}  # fmt: skip


def test_a_record_of_before_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    run = read_description(written(tmp_path, WRITTEN))
    config = TrainConfig.from_dict(run.options).to_dict()
    assert {name: config[name] for name in OPTIONS} == OPTIONS
    # Options that came later have the value that means what was done before.
    assert {name for name in config if name not in OPTIONS} == set(LATER)
    assert all(config[name] == value for name, value in LATER.items())
    assert (run.info.data_relative, run.info.encoder_hashes["left"]) == ("../../data", "34963dcd")
    assert (run.info.steps, run.info.device, run.identity.implementation) == (3, "cpu", "cursor")
    run.folder.description.unlink()
    run.write()
    assert json.loads((tmp_path / "run.json").read_text()) == WRITTEN
    assert read_run_json(tmp_path) == WRITTEN


def test_the_first_runs_did_not_record_where_their_data_was(tmp_path: Path) -> None:
    info = {name: value for name, value in WRITTEN["facts"].items() if name not in ("data_absolute", "data_relative")}
    run = read_description(written(tmp_path, {**WRITTEN, "facts": info}))
    assert (run.info.data, run.info.data_absolute, run.info.data_relative) == ("/project/data", None, None)
    assert run.info.to_dict() == info


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "does not describe a FluxTalk run"),
        ({"facts": [1]}, "does not describe a FluxTalk run"),
        ({"schema_version": 2}, "has run schema 2; this FluxTalk reads 1: install the version that wrote it"),
        (
            {"facts": {**WRITTEN["facts"], "steps": "many"}},
            r"needs facts\.steps, an integer of at most 64 bits; got 'many'",
        ),
        ({"facts": {}}, r"needs facts\.data, text; got None"),
    ],
)
def test_a_record_that_was_changed_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        read_description(written(tmp_path, {**WRITTEN, **change}))


def test_a_folder_is_free_until_there_is_a_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.is_free()
    folder.checkpoints.mkdir(parents=True)
    for path in (folder.description, folder.log, folder.metadata, folder.lock):
        path.write_text("")
    (folder.checkpoints / ".last.safetensors.x.tmp").write_text("")
    assert folder.is_free()
    folder.last.write_text("")
    assert not folder.is_free()
