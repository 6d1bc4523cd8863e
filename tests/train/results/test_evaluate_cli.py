"""`fluxtalk eval`: a checkpoint scored again is what training said, and what does not fit is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fluxtalk.model.checkpoints.head import load_head, save_head
from fluxtalk.model.checkpoints.stage1 import Stage1, save_stage1
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.records.history import read_history
from fluxtalk.train.results.compare import compare
from fluxtalk.train.results.evaluate_cli import main
from fluxtalk.train.run import fit
from tests.conftest import Made


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def evaluated(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    record: dict[str, Any] = json.loads(done.stdout)
    return record


@pytest.fixture(scope="module")
def averaged(train_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with a moving average, of another identity."""
    folder = tmp_path_factory.mktemp("averaged")
    config = dataclasses.replace(
        train_config, output_dir=str(folder), log_name="run", epochs=2, ema_decay=0.9, implementation="other"
    )
    assert fit(config).finished
    return folder / "run"


def test_the_best_checkpoint_scores_what_training_said(made: Made) -> None:
    results = json.loads((made.run.root / "results.json").read_text())
    record = evaluated(made.run.root)
    assert (record["kind"], record["split"]) == ("evaluation", "test")
    assert record["checkpoint"] == str(made.run.root / "checkpoints" / "best.safetensors")
    for name in ("recall", "recall_unseen", "chance", "score", "experiment_id", "implementation"):
        assert record[name] == results[name], name
    for name in ("ndcg", "mrr"):
        for direction, by_k in record[name].items():
            for k, value in by_k.items():
                # At most as often as an item is among ten, and at least as often as it is the first.
                assert record["recall"][direction][k]["1"] <= value <= record["recall"][direction][k]["10"], (name, k)
    shown = run(made.run.root).output
    assert "nDCG@10" in shown
    assert "MRR@10" in shown
    info = made.run.description.info
    assert (record["data"], record["data_hash"]) == (info.data, info.data_hash)
    assert record["stage1_hash"] == info.stage1_hash


def test_the_last_checkpoint_scores_what_the_last_validation_said(averaged: Path) -> None:
    """Validation looks at the moving average, and so must this."""
    records = [json.loads(line) for line in (averaged / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "validation"][-1]
    record = evaluated(averaged, "--checkpoint", "last", "--split", "validation")
    assert record["step"] == last["step"]
    assert record["recall"] == last["recall"]
    assert record["implementation"] == "other"


def test_another_head_on_the_same_encoders(made: Made, averaged: Path) -> None:
    path = averaged / "checkpoints" / "best.safetensors"
    assert evaluated(made.run.root, "--checkpoint", path)["recall"] == evaluated(averaged)["recall"]


def test_other_data_is_scored_and_named(made: Made, table_path: Path, tmp_path: Path) -> None:
    """Half of the test ids: chance has doubled."""
    rows = list(csv.DictReader(table_path.read_text().splitlines()))
    kept = sorted({row["id"] for row in rows if row["split"] == "test"})[:16]
    with (tmp_path / "half.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "text", "id", "split"])
        writer.writeheader()
        for row in rows:
            if row["split"] != "test" or row["id"] in kept:
                writer.writerow(row | {"image": table_path.parent / row["image"]})
    whole = evaluated(made.run.root)
    output = tmp_path / "new" / "record.json"
    done = run(made.run.root, "--data", tmp_path / "half.csv", "-o", output)
    assert done.exit_code == 0, done.output
    record = json.loads(output.read_text())
    assert record["data"] == str(tmp_path / "half.csv")
    assert record["data_hash"] != whole["data_hash"]
    assert record["chance"]["text->image"]["1"] == pytest.approx(2 * whole["chance"]["text->image"]["1"])
    printed = " ".join(done.stdout.split())
    for direction, by_k in record["recall"].items():
        for k, by_cutoff in by_k.items():
            cells = " ".join(f"R@{cutoff} {100 * value:.1f} %" for cutoff, value in by_cutoff.items())
            assert f"{direction} k={k} {cells}" in printed
    # Which of these items the head saw in training is not known.
    assert "recall_unseen" not in record


def test_what_does_not_fit_is_refused_by_name(made: Made, stage1: Stage1, table_path: Path, tmp_path: Path) -> None:
    root = made.run.root
    head = load_head(root / "checkpoints" / "best.safetensors")
    save_head(dataclasses.replace(head, stage1_hash="0" * 64), tmp_path / "foreign.safetensors")
    dims = {"audio": 8, "text": head.config.dims["text"]}
    config = dataclasses.replace(head.config, dims=dims)
    save_head(dataclasses.replace(head, config=config), tmp_path / "audio.safetensors")
    save_stage1(Stage1({"text": stage1.modalities["text"]}, data=str(table_path)), tmp_path / "text.pth")
    (tmp_path / "sound.csv").write_text("audio,text\nhum,a\nhiss,b\n")
    for arguments, code, words in (
        ((tmp_path,), 1, "run.json"),
        ((root, "--checkpoint", tmp_path / "none.safetensors"), 1, "does not exist"),
        ((root, "--checkpoint", tmp_path / "foreign.safetensors"), 1, "foreign.safetensors was not trained on"),
        ((root, "--checkpoint", tmp_path / "audio.safetensors"), 1, "reads audio, text, but"),
        ((root, "--stage1_checkpoint", tmp_path / "text.pth"), 1, "text.pth encodes text"),
        ((root, "--data", tmp_path / "sound.csv"), 2, "nothing for image"),
    ):
        done = run(*arguments, "-o", tmp_path / "record.json")
        sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.exit_code == code, done.output
        assert len(sentences) == 1
        assert words in sentences[0]
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "record.json").exists()


def test_everything_that_is_written_is_documented(made: Made) -> None:
    documented = set(
        re.findall(r"`(?:facts\.)?(\w+)[^`]*`", (Path(__file__).parents[3] / "docs" / "runs.md").read_text())
    )
    description = json.loads((made.run.root / "run.json").read_text())
    records = [json.loads(line) for line in (made.run.root / "metrics.jsonl").read_text().splitlines()]
    records += [json.loads((made.run.root / "results.json").read_text()), evaluated(made.run.root)]
    written = {name for record in records for name in record} | set(description) | set(description["facts"])
    assert sorted(written - documented) == []


def test_a_real_run_can_be_compared(made: Made, averaged: Path) -> None:
    comparison = compare([read_history(made.run.root), read_history(averaged)])
    assert {"epochs", "ema_decay"} <= set(comparison.differing)
    assert comparison.groups == (1, 1)
    assert comparison.notes == ()
    entry = comparison.to_dict()["runs"][0]
    results = json.loads((made.run.root / "results.json").read_text())
    assert entry["recall"] == results["recall"]
    assert entry["seconds"] == results["seconds"]
    assert entry["parameters"] == sum(p.numel() for p in made.run.head.build().parameters())
