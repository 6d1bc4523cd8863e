"""The stage 2 checkpoint: round trips, and every kind of file that is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fluxtalk.artifacts.files import Identity
from fluxtalk.errors import CheckpointError
from fluxtalk.model.checkpoints.head import (
    REDUCED_SCHEMA_VERSION,
    SCHEMA_VERSION,
    HeadCheckpoint,
    load_head,
    save_head,
)
from fluxtalk.model.head.reduction import FeatureReduction, ReductionConfig
from fluxtalk.model.head.registers import RegisterTokenModule

DIMS = {"image": 6, "text": 5}


def _checkpoint(**settings: Any) -> tuple[RegisterTokenModule, HeadCheckpoint]:
    torch.manual_seed(0)
    head = RegisterTokenModule(DIMS, dim=8, heads=2, **settings).eval()
    state = {"log_scale": torch.tensor(2.5), "optimizer.registers.step": torch.tensor(3, dtype=torch.int64)}
    identity = Identity("mine", "other", git_revision="abc+")
    progress = {"step": 7, "steps": 20, "best_score": 0.25, "best_epoch": 2}
    return head, HeadCheckpoint(head.config, head.state_dict(), "f00d", identity, progress, state)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A written checkpoint."""
    save_head(_checkpoint()[1], tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_register_tokens": 1, "num_overlapping_tokens": 1},
        {"depth": 2, "self_attention": True, "block_weights": "per_modality", "nested_dropout_schedule": "geometric"},
    ],
    ids=["default", "one-token", "everything"],
)
def test_round_trip(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Configuration, weights, training state and identity come back; the built head gives the same tokens."""
    head, written = _checkpoint(**settings)
    save_head(written, tmp_path / "deep" / "head.safetensors")
    read = load_head(tmp_path / "deep" / "head.safetensors")
    assert (read.config, read.stage1_hash, read.identity) == (written.config, "f00d", written.identity)
    assert read.progress == written.progress
    for before, after in ((written.weights, read.weights), (written.training_state, read.training_state)):
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(after[name], tensor), name
            assert after[name].dtype == tensor.dtype, name
    built = read.build()
    assert not built.training
    features = {m: torch.randn(3, 4, size) for m, size in DIMS.items()}
    for modality, tokens in head(features).tokens.items():
        assert torch.equal(built(features).tokens[modality], tokens)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["head.safetensors"]


def test_a_checkpoint_says_what_it_is(path: Path) -> None:
    """Contract 6, readable with safetensors alone."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["header"])
    assert metadata["format"] == "fluxtalk.stage2"
    assert header["schema_version"] == SCHEMA_VERSION
    assert header["identity"] == {
        "experiment_id": "mine",
        "implementation": "other",
        "implementation_version": "1.0",
        "git_revision": "abc+",
    }
    assert header["config"]["num_register_tokens"] == 4
    assert len(metadata["content_hash"]) == 64


def test_reductions_come_back(tmp_path: Path) -> None:
    """Those that do something; a FluxTalk that knows none refuses the file by its schema."""
    path = tmp_path / "head.safetensors"
    _, plain = _checkpoint()
    image = FeatureReduction(ReductionConfig(9, 2, 6), torch.randn(9), torch.randn(6, 9))
    identity = FeatureReduction(ReductionConfig(5))
    save_head(dataclasses.replace(plain, reductions={"image": image, "text": identity}), path)
    read = load_head(path)
    assert list(read.reductions) == ["image"]
    assert read.reductions["image"].content_hash() == image.content_hash()
    assert read.weights.keys() == plain.weights.keys()
    assert read.training_state.keys() == plain.training_state.keys()
    tensors, metadata = _parts(path)
    assert json.loads(metadata["header"])["schema_version"] == REDUCED_SCHEMA_VERSION != SCHEMA_VERSION
    tensors["reduction.image.components"][0, 0] += 1
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="was changed since it was written"):
        load_head(path)
    # Nothing reduced is what earlier versions wrote, and read.
    save_head(dataclasses.replace(plain, reductions={"text": identity}), path)
    header = json.loads(_parts(path)[1]["header"])
    assert header["schema_version"] == SCHEMA_VERSION
    assert "reductions" not in header
    assert load_head(path).reductions == {}


def test_writing_again_replaces_the_file_whole(path: Path) -> None:
    head, other = _checkpoint()
    torch.nn.init.ones_(head.registers)
    save_head(other, path)
    assert (load_head(path).weights["registers"] == 1).all()


def test_missing_truncated_and_foreign_files_are_refused(path: Path, tmp_path: Path) -> None:
    """Each sentence names the file."""
    whole = path.read_bytes()
    for name, content, words in (
        ("missing.safetensors", None, "does not exist"),
        ("empty.safetensors", b"", "cannot be read"),
        ("truncated.safetensors", whole[:-1], "cannot be read"),
        ("half.safetensors", whole[: len(whole) // 2], "cannot be read"),
        ("longer.safetensors", whole + b"\0", "cannot be read"),
        ("text.safetensors", b"this is no checkpoint at all", "cannot be read"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=words) as caught:
            load_head(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors is not a FluxTalk stage 2 checkpoint"):
        load_head(tmp_path / "foreign.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "stage1.pth")
    with pytest.raises(CheckpointError, match=r"stage1\.pth cannot be read"):
        load_head(tmp_path / "stage1.pth")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="folder does not exist"):
        load_head(tmp_path / "folder")


def _parts(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def test_another_schema_is_refused(path: Path) -> None:
    tensors, metadata = _parts(path)
    header = {**json.loads(metadata["header"]), "schema_version": 99}
    save_file(tensors, path, metadata={**metadata, "header": json.dumps(header)})
    with pytest.raises(CheckpointError, match=rf"has stage 2 schema 99; .* reads {SCHEMA_VERSION}"):
        load_head(path)


@pytest.mark.parametrize("part", ["tensor", "name", "header", "stage1_hash"])
def test_changed_content_is_refused(path: Path, part: str) -> None:
    """Noticed by its hash, in a file that is otherwise valid."""
    tensors, metadata = _parts(path)
    header = json.loads(metadata["header"])
    if part == "tensor":
        tensors["head.registers"][0, 0] += 1
    elif part == "name":
        tensors["head.other"] = tensors.pop("head.registers")
    elif part == "header":
        header["config"]["nested_dropout_rate"] = 0.25
    else:
        header["stage1_hash"] = "beef"
    save_file(tensors, path, metadata={**metadata, "header": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"head\.safetensors was changed since it was written"):
        load_head(path)


@pytest.mark.parametrize(
    "changes", [{"header": "{"}, {"header": "[1]"}, {"header": None}, {"content_hash": None}], ids=str
)
def test_a_malformed_header_is_refused(path: Path, changes: dict[str, str | None]) -> None:
    tensors, metadata = _parts(path)
    save_file(tensors, path, metadata={k: v for k, v in {**metadata, **changes}.items() if v is not None})
    with pytest.raises(CheckpointError, match=r"head\.safetensors is a malformed stage 2 checkpoint"):
        load_head(path)


def test_no_flipped_bit_goes_unnoticed(path: Path) -> None:
    """Changes anywhere in the header and the numbers are noticed."""
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in [*range(0, start, 5), *range(start, len(whole), 41)]:
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        with pytest.raises(CheckpointError) as caught:
            load_head(path)
        assert str(path) in str(caught.value)
