"""The specification's command, as it is written there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

COMMAND = """
torchrun --nproc_per_node=2 -m fluxtalk.train --stage1_checkpoint {stage1} --batch_size 64 --epochs 100
    --num_register_tokens 4 --num_overlapping_tokens 3 --nested_dropout_rate 0.5 --complementary_reg_weight 0.01
    --output_dir {output} --log_name specified
"""


def test_the_specified_torchrun_line_trains_the_specified_module(stage1_path: Path, tmp_path: Path) -> None:
    command = shlex.split(COMMAND.format(stage1=stage1_path, output=tmp_path))
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    root = tmp_path / "specified"
    recorded = json.loads((root / "run.json").read_text())
    options = recorded["options"]
    assert (options["num_register_tokens"], options["num_overlapping_tokens"]) == (4, 3)
    assert (options["nested_dropout_rate"], options["complementary_reg_weight"]) == (0.5, 0.01)
    assert (options["recipe"], options["aggregation"], options["complementary_objective"]) == (
        "specified", "mean", "none",
    )  # fmt: skip
    assert (options["batch_size"], options["epochs"], recorded["facts"]["processes"]) == (64, 100, 2)
    lines = (root / "train.log").read_text().splitlines()
    assert lines
    assert all(re.match(r"[\dT:-]{19} \[CURSOR\] ", line) for line in lines)
    assert "[CURSOR]" in done.stdout
    # The first process alone talks.
    assert done.stdout.count("test recall of the best head") == 1
    # The table has fewer ids than the 128 that were asked for.
    assert recorded["facts"]["global_batch"] == 96
    metadata = (root / "METADATA.txt").read_text()
    assert "Experiment: cursor_flux_talk_register_tokens" in metadata
    recall = json.loads((root / "results.json").read_text())["recall"]
    assert {k for by_k in recall.values() for k in by_k} == {"1", "2", "3", "4"}
