"""`fluxtalk align`, as a user meets it: every stage on real encoders and data, and doing nothing twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fluxtalk
from fluxtalk.align.cli import STAGE_NAMES, main
from fluxtalk.align.plan import STAGES
from fluxtalk.artifacts.run import RunFolder, read_description
from fluxtalk.cli import main as fluxtalk_main
from tests.align.conftest import Aligned, run

OPTIONS = {
    "--encoder", "--stage1-checkpoint", "--prompt", "--default-prompt", "--allow-code", "--recipe", "--epochs",
    "--steps", "--batch-size", "--seed", "--feature-dtype", "--feature-pca", "--feature-pool", "--cache-dir", "-o",
    "--output", "--precision", "--device", "--until", "--debug", "data", "--on-bad-item", "--bad-items-limit",
}  # fmt: skip


def test_the_command_line_is_frozen() -> None:
    assert {spelling for parameter in main.params for spelling in parameter.opts} == OPTIONS
    assert tuple(stage.name for stage in STAGES) == STAGE_NAMES
    assert fluxtalk_main.get_command(None, "align") is main  # type: ignore[arg-type]


def done(output: str) -> list[str]:
    """Names of the stages that were run."""
    heads = [line.split("] ")[1] for line in output.splitlines() if line.startswith("[") and "/7] " in line]
    return [head.partition(":")[0] for head in heads if not head.endswith("up to date")]


def test_all_stages_from_a_table_to_a_bundle(aligned: Aligned) -> None:
    result = aligned.result
    assert result.exit_code == 0, result.output
    assert done(result.stdout) == list(STAGE_NAMES)
    for name in ("run/results.json", "evaluation.json", "bundle/manifest.json", "verification.json", "README.md"):
        assert (aligned.folder / name).is_file(), name
    # What was chosen is said.
    assert "32 pairs a step, as asked" in result.stdout
    assert "9 steps in 3 epochs, for the 9 steps that were asked for" in result.stdout
    assert "dropouts as in the recipe" in result.stdout
    # So is what it gave, beside the baselines, and what comes next.
    assert "recall on the test split (32 ids)" in result.stdout
    for name in ("k = 1", "k = 3", "mean-pool + linear", "mean-pool + mlp", "chance"):
        assert name in result.stdout
    assert f"fluxtalk serve {aligned.folder / 'bundle'} --index" in result.stdout
    embedder = fluxtalk.load(aligned.folder / "bundle")
    vectors = embedder.embed("text", ["a word"], k=2)
    assert np.isclose(np.linalg.norm(vectors), 1, atol=1e-5)


def test_the_same_command_again_does_nothing(aligned: Aligned) -> None:
    before = {path: path.stat().st_mtime_ns for path in aligned.folder.rglob("*") if path.name != "align.lock"}
    again = run(*aligned.arguments, "-o", str(aligned.folder))
    assert again.exit_code == 0, again.output
    assert done(again.stdout) == []
    assert "recall on the test split" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in aligned.folder.rglob("*") if path.name != "align.lock"} == before


def test_the_card_tells_encoders_data_recall_and_parity(aligned: Aligned) -> None:
    card = (aligned.folder / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n")
    assert 'image: "small-image"' in front
    assert 'data: "pairs.csv"' in front
    assert "| train | 96 | 192 | 96 |" in body
    test = json.loads((aligned.folder / "evaluation.json").read_text())["splits"]["test"]
    for name, recall in (("k = 1", test["recall"]), ("mean-pool + mlp", test["baselines"]["mean-pool + mlp"])):
        by_cutoff = recall["text->image"]["1"]
        cells = " | ".join(f"{100 * by_cutoff[cutoff]:.1f}" for cutoff in ("1", "5", "10"))
        assert f"| text to image | {name} | {cells} |" in body
    assert test["recall"] == json.loads((aligned.folder / "run" / "results.json").read_text())["recall"]
    assert "k = 4" not in body  # the complementary token takes no part
    assert "| fp32 | " in body
    for modality in ("image", "text"):
        assert f"- {modality}, ONNX Runtime on a CPU: noise of float32 " in body
    assert "9 steps of 32 pairs in 3 epochs" in body
    assert "fluxtalk index build bundle image --input pairs.csv --skip-empty -o image.index" in body
    assert str(aligned.folder.parent) not in card


@pytest.fixture
def copy(aligned: Aligned, tmp_path: Path) -> Path:
    """A copy of the finished folder."""
    shutil.copytree(aligned.folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.slow
def test_another_precision_redoes_export_verify_and_card_alone(aligned: Aligned, copy: Path) -> None:
    (copy / "README.md").write_text("by hand")
    more = run(*aligned.arguments, "-o", str(copy), "--precision", "fp32", "--precision", "fp16")
    assert more.exit_code == 0, more.output
    assert done(more.stdout) == ["export", "verify", "card"]
    assert (copy / "bundle" / "text.fp16.onnx").is_file()
    assert not (copy / "bundle.new").exists()
    assert re.search(r"^\| fp16 \| \S+ \| \S+ \| at most \S+ \|$", (copy / "README.md").read_text(), re.MULTILINE)
    assert (copy / "README.edited.md").read_text() == "by hand"


def test_a_refused_precision_is_exit_code_3_as_long_as_it_is_asked_for(aligned: Aligned, copy: Path) -> None:
    record = json.loads((copy / "align.json").read_text())
    record["stages"]["export"]["outputs"]["refused"] = ["int8"]
    (copy / "align.json").write_text(json.dumps(record))
    again = run(*aligned.arguments, "-o", str(copy))
    assert again.exit_code == 3, again.output
    assert done(again.stdout) == ["card"]
    assert "not in the bundle: int8" in again.stdout
    assert "refused by the quality gate: int8" in (copy / "README.md").read_text()


def test_changed_data_redo_what_depends_on_them(aligned: Aligned, copy: Path, tmp_path: Path) -> None:
    table = Path(aligned.arguments[0])
    data = tmp_path / "data"
    shutil.copytree(table.parent, data)
    same = run(str(data / table.name), *aligned.arguments[1:], "-o", str(copy), "--until", "train")
    assert done(same.stdout) == []  # the same content at another place
    lines = table.read_text().splitlines()
    (data / table.name).write_text("\n".join(lines[:-2]) + "\n")
    changed = run(str(data / table.name), *aligned.arguments[1:], "-o", str(copy), "--until", "train")
    assert changed.exit_code == 0, changed.output
    assert done(changed.stdout) == ["features", "train"]
    assert read_description(copy / "run").info.data == str(data / table.name)
    assert not RunFolder(copy / "run").baseline_results("mlp").exists()
    assert json.loads((copy / "align.json").read_text())["stages"].keys() == set(STAGE_NAMES)


def test_a_cache_that_is_gone_is_needed_by_training_alone(aligned: Aligned, copy: Path, tmp_path: Path) -> None:
    elsewhere = ["-o", str(copy), "--cache-dir", str(tmp_path / "cache"), "--until", "features"]
    assert done(run(*aligned.arguments, *elsewhere).stdout) == []
    (copy / "evaluation.json").unlink()
    assert done(run(*aligned.arguments, *elsewhere).stdout) == ["features"]


@pytest.fixture
def _heeding_ctrl_c() -> Iterator[None]:
    """Python's own handler of SIGINT, which a background shell starts its jobs without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeding_ctrl_c")
def test_ctrl_c_in_training_leaves_a_run_that_goes_on(aligned: Aligned, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    arguments = [*aligned.arguments, "--steps", "60", "-o", str(folder), "--until", "train"]

    def interrupt() -> None:
        metrics = RunFolder(folder / "run").metrics
        while not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    stopped = run(*arguments)
    thread.join()
    assert stopped.exit_code == 130, stopped.output
    (sentence,) = [line for line in stopped.stderr.splitlines() if line.startswith("train was interrupted")]
    assert f"goes on from there: fluxtalk align {arguments[0]} " in sentence
    assert sentence.endswith(f"-o {folder} --until train")
    assert "Traceback" not in stopped.output
    going_on = run(*arguments)
    assert going_on.exit_code == 0, going_on.output
    assert done(going_on.stdout) == ["train"]
    assert "resumed after step" in (folder / "run" / "train.log").read_text()


def test_encoders_by_name_are_packed(tmp_path: Path) -> None:
    """Precomputed features need no preprocessing, so that flags say all."""
    generator = np.random.default_rng(0)
    for modality in ("sound", "video"):
        (tmp_path / "data" / modality).mkdir(parents=True)
        for number in range(60):
            array = generator.standard_normal((3, 8)).astype(np.float32)
            np.save(tmp_path / "data" / modality / f"{number}.npy", array)
    arguments = [str(tmp_path / "data"), "--encoder", "sound=features:8", "--encoder", "video=features:8"]
    arguments += ["-o", str(tmp_path / "mine"), "--cache-dir", str(tmp_path / "cache"), "--until", "features"]
    packed = run(*arguments)
    assert packed.exit_code == 0, packed.output
    assert (tmp_path / "mine" / "stage1.pth").is_file()
    assert "sound: features:8, features of dimension 8" in packed.stdout
    (tmp_path / "mine" / "stage1.pth").write_bytes(b"damaged")
    assert done(run(*arguments).stdout) == ["pack"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--encoder", "image=small-image"], 2, "Two modalities or more"),
        ([], 2, "got neither"),
        (["--encoder", "image"], 2, "MODALITY=SOURCE"),
        (["--encoder", "image=a", "--encoder", "image=b"], 2, "names the modality image twice"),
        (["--stage1-checkpoint", "s.pth", "--epochs", "1", "--steps", "1"], 2, "got both"),
        (["--stage1-checkpoint", "s.pth", "--prompt", "text.query=q"], 2, "a checkpoint has its own"),
        (["--stage1-checkpoint", "s.pth", "--precision", "fp16", "--precision", "fp16"], 2, "each once"),
        (["--stage1-checkpoint", "s.pth"], 1, "nothing.csv does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    refused = run(str(tmp_path / "nothing.csv"), *arguments, "-o", str(tmp_path / "mine"))
    assert refused.exit_code == code, refused.output
    (sentence,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert words in sentence
    assert not (tmp_path / "mine").exists()


def test_a_folder_of_something_else_is_refused(aligned: Aligned, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    refused = run(*aligned.arguments, "-o", str(tmp_path))
    assert refused.exit_code == 2
    assert "`fluxtalk align` did not make it" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_stage_that_fails_names_the_way_on(aligned: Aligned, stage1_path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text(Path(aligned.arguments[0]).read_text().replace("image,text", "picture,text", 1))
    failed = run(str(other), "--stage1-checkpoint", str(stage1_path), "-o", str(tmp_path / "mine"))
    assert failed.exit_code != 0
    assert "features did not end; what is done is kept" in failed.stderr
