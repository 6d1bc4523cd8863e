"""Stage 1 stays as it was, bit for bit, with the encoders in the loop and weight decay on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fluxtalk.artifacts.files import Identity
from fluxtalk.model.checkpoints.stage1 import save_stage1
from fluxtalk.model.encoders import FrozenEncoder
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.features.sources import OnlineFeatures
from fluxtalk.train.inputs import read_inputs
from fluxtalk.train.run import build_trainer
from fluxtalk.train.stage1.create import stage1_from_specification

FACTORY = """
import torch

class Convolution(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 12, 8, stride=8)
        self.norm = torch.nn.BatchNorm2d(12)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, pixels):
        return self.dropout(self.norm(self.convolution(pixels))).flatten(2).transpose(1, 2)

def make():
    return Convolution()
"""


@pytest.fixture
def trainer(
    train_config: TrainConfig, stage1_path: Path, table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Trainer:
    """A trainer whose image encoder has what moves when it is not frozen: BatchNorm and dropout."""
    (tmp_path / "user_encoders.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    specification = {
        "data": str(table_path),
        "modalities": {
            "image": {
                "encoder": "module:user_encoders:make",
                "preprocess": {"kind": "image", "height": 32, "width": 32, "channels": 1, "mean": 0.5, "std": 0.5},
            }
        },
    }
    (tmp_path / "encoders.json").write_text(json.dumps(specification))
    from fluxtalk.model.checkpoints.stage1 import load_stage1

    image = stage1_from_specification(tmp_path / "encoders.json").modalities["image"]
    text = load_stage1(stage1_path).modalities["text"]
    both = dataclasses.replace(load_stage1(stage1_path), modalities={"image": image, "text": text})
    save_stage1(both, tmp_path / "stage1.pth")
    config = dataclasses.replace(
        train_config, stage1_checkpoint=str(tmp_path / "stage1.pth"), encode="online", weight_decay=0.5
    )
    inputs = read_inputs(config, SingleProcess(), torch.device("cpu"))
    return build_trainer(config, inputs, SingleProcess(), Identity())


def encoders(trainer: Trainer) -> dict[str, FrozenEncoder]:
    found = {}
    for modality, source in trainer.sources.items():
        assert isinstance(source, OnlineFeatures)
        found[modality] = source._encoder
    return found


def test_only_the_head_trains(trainer: Trainer) -> None:
    before: dict[str, dict[str, Tensor]] = {
        m: {name: t.clone() for name, t in encoder.state_dict().items()} for m, encoder in encoders(trainer).items()
    }
    head = {name: p.detach().clone() for name, p in trainer.head.named_parameters()}
    trainer.step_module.train()
    for encoder in encoders(trainer).values():
        encoder.train()
    for _ in range(3):
        trainer.step()
    optimized = {id(p) for group in trainer.optimizer_step.optimizer.param_groups for p in group["params"]}
    for modality, encoder in encoders(trainer).items():
        assert not any(module.training for module in encoder.modules())
        for parameter in encoder.parameters():
            assert not parameter.requires_grad
            assert parameter.grad is None
            assert id(parameter) not in optimized
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, before[modality][name]), f"{modality} {name} moved"
    for name, parameter in trainer.head.named_parameters():
        assert not torch.equal(parameter, head[name]), f"{name} did not train"


def test_a_thawed_encoder_would_be_noticed(trainer: Trainer) -> None:
    """The check above can fail: the same steps move BatchNorm once it is not frozen."""
    inner = encoders(trainer)["image"].encoder
    nn.Module.train(inner, True)
    assert isinstance(inner.norm, nn.BatchNorm2d)
    before = inner.norm.running_mean.clone()  # type: ignore[union-attr]
    trainer.gradients(0)
    assert not torch.equal(inner.norm.running_mean, before)  # type: ignore[arg-type]
