"""Broken files never stop a run one by one: all are listed at its start, or left out of it and of all that follows."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from fluxtalk.artifacts.run import read_description
from fluxtalk.datasets.bad_items import read_report
from fluxtalk.errors import DataError
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.results.evaluate import Evaluation, evaluate
from fluxtalk.train.run import fit

BROKEN = ("train", "validation", "test")
"""Splits of which one file is broken each, in its own way."""


@pytest.fixture(scope="module")
def config(train_config: TrainConfig, table_path: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Options of a run on a copy of the table, with one broken file in each split."""
    folder = tmp_path_factory.mktemp("broken") / "data"
    shutil.copytree(table_path.parent, folder)
    damage = (b"<html>404</html>", b"", None)
    for split, content in zip(BROKEN, damage, strict=True):
        path = next(folder.glob(f"{split}-3-*.png"))
        path.write_bytes(path.read_bytes()[:100] if content is None else content)
    return dataclasses.replace(
        train_config,
        data=str(folder / "pairs.csv"),
        output_dir=str(folder.parent / "runs"),
        cache_dir=str(folder.parent / "cache"),
        epochs=1,
    )


def test_all_are_listed_before_training_and_skip_goes_on_from_what_was_encoded(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as refused:
        fit(config)
    sentence = str(refused.value)
    assert "has 3 of 480 items that cannot be used" in sentence
    assert all(f"{split}-3-" in sentence for split in BROKEN)
    assert not Path(config.output_dir).exists()
    (report,) = (Path(str(config.cache_dir)) / "bad_items").iterdir()
    assert str(report) in sentence

    capsys.readouterr()
    run = fit(dataclasses.replace(config, log_name="skipped", on_bad_item="skip")).folder
    told = capsys.readouterr()
    assert "encoding" not in told.out + told.err
    assert "3 items that cannot be used are left out (3 of image)" in told.out
    data_hash, items = read_report(run.bad_items)
    assert {item.split for item in items} == {*BROKEN}
    info = read_description(run.root).info
    assert info.left_out == {"items": {"image": 3}, "ids": 0}  # each id has the picture of another face
    assert info.data_hash != data_hash
    assert json.loads(run.results.read_text())["left_out"] == info.left_out

    again = evaluate(Evaluation(run.root))
    assert (again["data_hash"], again["left_out"]) == (info.data_hash, info.left_out)
    assert again["recall"] == json.loads(run.results.read_text())["recall"]
    assert fit(dataclasses.replace(config, log_name="skipped", on_bad_item="skip"), resume=True).finished


def test_more_than_the_limit_needs_a_second_word(config: TrainConfig) -> None:
    with pytest.raises(DataError, match=r"more than the 0\.5% of --bad-items-limit"):
        fit(dataclasses.replace(config, log_name="limit", on_bad_item="skip", bad_items_limit=0.005))


def test_encoders_that_run_in_every_step_know_before_the_first(config: TrainConfig) -> None:
    with pytest.raises(DataError, match="has 3 of 480 items that cannot be used"):
        fit(dataclasses.replace(config, log_name="online", encode="online"))
