"""`fluxtalk align` on data with items that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fluxtalk.datasets.bad_items import read_report
from tests.align.conftest import run


def test_bad_items_end_the_stage_that_encodes_or_are_left_out_of_all_that_follow(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for modality in ("sound", "video"):
        (tmp_path / "data" / modality).mkdir(parents=True)
        for number in range(60):
            array = generator.standard_normal((3, 8)).astype(np.float32)
            array[0, 0] = np.nan if (modality, number) == ("video", 7) else 1
            np.save(tmp_path / "data" / modality / f"{number}.npy", array)
    arguments = [str(tmp_path / "data"), "--encoder", "sound=features:8", "--encoder", "video=features:8"]
    arguments += ["-o", str(tmp_path / "mine"), "--cache-dir", str(tmp_path / "cache"), "--until", "train"]
    arguments += ["--epochs", "1", "--device", "cpu"]
    refused = run(*arguments)
    assert refused.exit_code == 1
    sentence = refused.stderr.splitlines()[-1]
    assert "has 1 of 120 items that cannot be used" in sentence
    assert "7.npy" in refused.stderr
    skipping = [*arguments, "--on-bad-item", "skip", "--bad-items-limit", "0.05"]
    done = run(*skipping)
    assert done.exit_code == 0, done.output
    assert "1 items that cannot be used are left out (1 of video), and 1 ids with them" in done.stdout
    for report in (tmp_path / "mine" / "bad_items.jsonl", tmp_path / "mine" / "run" / "bad_items.jsonl"):
        (item,) = read_report(report)[1]
        assert (item.modality, item.id) == ("video", "7")
    assert [line for line in run(*skipping).stdout.splitlines() if line.startswith("[")] == [
        "[1/7] pack: up to date", "[2/7] features: up to date", "[3/7] train: up to date",
    ]  # fmt: skip
