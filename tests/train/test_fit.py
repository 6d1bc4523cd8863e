"""`fluxtalk.train.fit`: the same training from Python; a new modality joins; missing modalities; the recipes."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fluxtalk.artifacts.run import read_run_json
from fluxtalk.errors import CheckpointError, UsageError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.checkpoints.stage1 import Stage1, save_stage1
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.train import Callback, TrainConfig, fit
from fluxtalk.train.cli import main
from fluxtalk.train.config import RECIPES
from fluxtalk.train.stage1.create import stage1_from_specification
from tests.conftest import Made


class Listener(Callback):
    """Remembers what it hears."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.steps: list[tuple[int, float]] = []
        self.validations: list[tuple[int, float]] = []
        self._fail_at = fail_at

    def on_step(self, step: int, losses: Mapping[str, float]) -> None:
        if step == self._fail_at:
            raise RuntimeError("enough")
        self.steps.append((step, losses["total"]))

    def on_validation(self, step: int, scores: Mapping[str, Any], head: TokenHead) -> None:
        self.validations.append((step, scores["score"]))


def test_fit_is_the_command_and_tells_callbacks(train_config: TrainConfig, made: Made, tmp_path: Path) -> None:
    """The same options give the same weights as the shared run, which a callback does not change."""
    listener = Listener()
    result = fit(dataclasses.replace(train_config, output_dir=str(tmp_path)), callbacks=[listener])
    assert result.finished
    assert result.exit_code == 0
    assert [step for step, _ in listener.steps] == list(range(1, 10))
    assert [step for step, _ in listener.validations] == [3, 6, 9]
    records = [json.loads(line) for line in result.folder.metrics.read_text().splitlines()]
    assert [s for _, s in listener.validations] == [r["score"] for r in records if r["kind"] == "validation"]
    last = {r["step"]: r["total"] for r in records if r["kind"] == "train"}
    assert last == {step: pytest.approx(loss, abs=1e-6) for step, loss in listener.steps if step % 3 == 0}
    best = load_head(result.folder.best)
    for name, tensor in made.run.head.weights.items():
        assert torch.equal(best.weights[name], tensor), name
    assert result.scores is not None
    assert result.scores["recall"] == json.loads(result.folder.results.read_text())["recall"]
    train_records = [r for r in records if r["kind"] == "train"]
    assert all(0 <= r["wait_share"] <= 1 and r["pairs_per_s"] > 0 for r in train_records)


def test_what_a_callback_raises_ends_the_run_and_leaves_the_checkpoint(
    train_config: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(train_config, output_dir=str(tmp_path))
    with pytest.raises(RuntimeError, match="enough"):
        fit(config, callbacks=[Listener(fail_at=5)])
    folder = tmp_path / "shared" / "checkpoints"
    assert load_head(folder / "last.safetensors").progress["step"] == 3
    assert fit(config, resume=True).finished


def test_fit_works_in_a_thread(train_config: TrainConfig, tmp_path: Path) -> None:
    """Python handles no signals there; paths and numbers are those of Python programs."""
    theirs: dict[str, Any] = {
        "stage1_checkpoint": Path(train_config.stage1_checkpoint), "output_dir": tmp_path, "seed": np.int64(0),
    }  # fmt: skip
    config = dataclasses.replace(train_config, **theirs, epochs=1)
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(fit, config).result()
    assert result.finished
    assert json.loads(result.folder.description.read_text())["options"]["output_dir"] == str(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_checkpoints_between_validations(train_config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(train_config, output_dir=str(tmp_path), eval_every=3, checkpoint_every=2)
    with pytest.raises(RuntimeError, match="enough"):
        fit(config, callbacks=[Listener(fail_at=5)])
    assert load_head(tmp_path / "shared" / "checkpoints" / "last.safetensors").progress["step"] == 4


def test_run_json_says_everything(made: Made) -> None:
    content = read_run_json(made.run.root)
    assert content["facts"]["encoder_hashes"] == {m: p.content_hash() for m, p in made.run.stage1.modalities.items()}
    assert content["facts"]["parameters"] == sum(p.numel() for p in made.run.head.build().parameters())
    assert len(content["facts"]["data_hash"]) == 64
    assert content["environment"]["torch"] == torch.__version__
    assert {"python", "platform", "processors", "numpy", "cuda"} <= set(content["environment"])


@pytest.fixture
def with_features(table_path: Path, stage1: Stage1, tmp_path: Path) -> Path:
    """A stage 1 with a third modality of precomputed features, which only half of the table's ids have."""
    rows = list(csv.DictReader(table_path.read_text().splitlines()))
    generator = np.random.default_rng(0)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "text", "sound", "id", "split"])
        writer.writeheader()
        for index, row in enumerate(rows):
            sound = ""
            if int(row["id"][2:], 16) % 2:
                sound = f"sound-{index}.npy"
                np.save(tmp_path / sound, generator.standard_normal((4, 10)).astype(np.float32))
            picture = table_path.parent / row["image"]
            (tmp_path / row["image"]).write_bytes(picture.read_bytes())
            writer.writerow({**row, "sound": sound})
    (tmp_path / "encoders.json").write_text(json.dumps({"modalities": {"sound": {"encoder": "features:10"}}}))
    sound_part = stage1_from_specification(tmp_path / "encoders.json").modalities["sound"]
    both = Stage1({**stage1.modalities, "sound": sound_part}, data=str(tmp_path / "pairs.csv"))
    save_stage1(both, tmp_path / "stage1.pth")
    return tmp_path / "stage1.pth"


@pytest.mark.parametrize("block_weights", ["shared", "per_modality"])
def test_a_new_modality_joins_without_moving_what_is_there(
    train_config: TrainConfig, with_features: Path, tmp_path: Path, block_weights: str
) -> None:
    """Every parameter that the old modalities use stays bit for bit, with weight decay on and an average kept."""
    old = dataclasses.replace(
        train_config, output_dir=str(tmp_path / "old"), epochs=1, block_weights=block_weights, depth=2
    )
    first = fit(old)
    joined = fit(
        dataclasses.replace(
            old,
            stage1_checkpoint=str(with_features),
            data=None,
            output_dir=str(tmp_path / "new"),
            epochs=3,
            weight_decay=0.5,
            ema_decay=0.5,
            init_from=str(first.folder.root),
            freeze_registers=True,
        )
    )
    before, after = load_head(first.folder.best), load_head(joined.folder.best)
    for name, tensor in before.weights.items():
        assert torch.equal(after.weights[name], tensor), name
    new = set(after.weights) - set(before.weights)
    assert new
    assert all(".sound." in name for name in new)
    start = load_head(joined.folder.last)
    torch.manual_seed(0)
    untrained = dict(RegisterTokenModule.from_config(after.config).state_dict())
    assert any(not torch.equal(start.weights[name], untrained[name]) for name in new)
    directions = (joined.scores or {})["recall"]
    assert {"sound->text", "text->sound", "image->text"} <= set(directions)


def test_a_run_that_does_not_fit_is_not_begun_with(
    train_config: TrainConfig, made: Made, with_features: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(train_config, output_dir=str(tmp_path / "x"), init_from=str(made.run.root))
    with pytest.raises(UsageError, match="another shape; give its --dim 48"):
        fit(dataclasses.replace(config, dim=32))
    with pytest.raises(UsageError, match="leaves nothing to train"):
        fit(dataclasses.replace(config, freeze_registers=True))
    changed = dict(made.run.stage1.modalities["image"].weights)
    name = next(iter(changed))
    changed[name] = changed[name] + 1
    other = {**made.run.stage1.modalities}
    other["image"] = dataclasses.replace(other["image"], weights=changed)
    save_stage1(Stage1(other, data=made.run.description.info.data), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="another image encoder"):
        fit(dataclasses.replace(config, stage1_checkpoint=str(tmp_path / "other.pth")))
    with pytest.raises(UsageError, match="name it with --init-from"):
        dataclasses.replace(train_config, freeze_registers=True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("recipe", ["recommended", "difference", "regions"])
def test_recipes_are_defaults_that_typed_options_override(
    train_config: TrainConfig, tmp_path: Path, recipe: str
) -> None:
    given = RECIPES[recipe]
    assert RECIPES["specified"] == {}
    done = CliRunner().invoke(
        main,
        [
            *("--stage1_checkpoint", train_config.stage1_checkpoint, "--output_dir", str(tmp_path)),
            *("--log_name", "run", "--cache_dir", str(train_config.cache_dir), "--recipe", recipe),
            *("--dropout", "0.25", "--epochs", "1", "--batch_size", "32", "--dim", "48", "--heads", "4"),
        ],
    )
    assert done.exit_code == 0, done.output
    options = json.loads((tmp_path / "run" / "run.json").read_text())["options"]
    for name, value in given.items():
        assert options[name] == {"dropout": 0.25, "heads": 4, "regions": "image=4x4"}.get(name, value), name
    assert options["recipe"] == recipe
    config = TrainConfig.with_recipe(recipe, stage1_checkpoint="a", output_dir="b", log_name="c", dropout=0.25)
    assert {name: getattr(config, name) for name in given} == {**given, "dropout": 0.25}
    with pytest.raises(UsageError, match="--recipe is one of specified, recommended"):
        TrainConfig.with_recipe("other", stage1_checkpoint="a", output_dir="b", log_name="c")


def test_ids_with_one_item_have_nothing_private_to_be_asked_for(
    train_config: TrainConfig, table_path: Path, tmp_path: Path
) -> None:
    """The table has two images and one text of each id; the second table one of each: said once, and not trained."""
    config = dataclasses.replace(
        train_config, output_dir=str(tmp_path), epochs=1, items_per_id=2, complementary_objective="difference"
    )
    folder = fit(config).folder
    said = [line for line in folder.log.read_text().splitlines() if "nothing private" in line]
    assert len(said) == 1
    assert "no training id has two items of text, so nothing private can be asked for there" in said[0]
    state = load_head(folder.last).training_state
    assert {name for name in state if name.startswith("loss.objective.")} == {
        "loss.objective.maps.image.weight",
        "loss.objective.maps.image.bias",
    }
    assert not any("objective" in name for name in load_head(folder.best).weights)

    rows = {row["id"]: row for row in csv.DictReader(table_path.read_text().splitlines())}
    with (tmp_path / "single.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "text", "id", "split"])
        writer.writeheader()
        writer.writerows({**row, "image": table_path.parent / row["image"]} for row in rows.values())
    single = dataclasses.replace(config, data=str(tmp_path / "single.csv"))
    heads = {}
    for name in ("difference", "none"):
        folder = fit(dataclasses.replace(single, log_name=name, complementary_objective=name)).folder
        assert ("two items of image or text" in folder.log.read_text()) == (name == "difference")
        heads[name] = load_head(folder.best)
    for name, tensor in heads["none"].weights.items():
        assert torch.equal(heads["difference"].weights[name], tensor), name

    with pytest.raises(UsageError, match="compares the items of an id in a batch; set --items-per-id to 2 or more"):
        dataclasses.replace(config, items_per_id=1)
