"""Trial of what an export needs, when an encoder is wrapped and before anybody trains on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.encoders.speaker import MEL_BINS, speaker_preprocessing
from fluxtalk.errors import UsageError
from fluxtalk.model.checkpoints.stage1 import Stage1Modality
from fluxtalk.model.encoders import EncoderSpec, build_encoder
from fluxtalk.preprocess import ImagePreprocessor
from fluxtalk.train.stage1.probe import probe

pytestmark = pytest.mark.usefixtures("trial_export")

CODE = """
import torch

class Odd(torch.nn.Module):
    def __init__(self, how="plain"):
        super().__init__()
        self.how = how
        self.c = torch.nn.Conv2d(3, 8, 8, 8)

    def forward(self, pixels):
        y = self.c(pixels).flatten(2).transpose(1, 2)
        if self.how == "batch":
            return y - y.mean(0, keepdim=True)
        if self.how == "random":
            return y + torch.randn(1)
        if self.how == "seeded":
            torch.manual_seed(0)
            return y + 1e-3 * torch.rand(y.shape[1:])
        if self.how == "values":
            return y if bool(y.sum() > 0) else -y
        if self.how == "dropout":
            return torch.nn.functional.dropout(y, 0.5, self.training)
        return y.to(getattr(torch, self.how)) if self.how in ("float16", "bfloat16") else y

def half():
    return Odd().half()

class Recurrent(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers = torch.nn.ModuleList(getattr(torch.nn, kind)(40, 40, batch_first=True) for _ in range(2))

    def forward(self, spectrogram, mask):
        for layer in self.layers:
            spectrogram, _ = layer(spectrogram)
        return spectrogram
"""


@pytest.fixture(autouse=True)
def _user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "exporting_user_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("exporting_user_code", None)


def tried(how: str) -> int:
    source = "module:exporting_user_code:Odd"
    return probe("image", source, build_encoder(source, {"how": how}), ImagePreprocessor(32, 32))


REFUSED = {
    "batch": r"gives an item other features in a batch with others than alone .* take out statistics over the batch",
    "random": "gives other features for the same input each time; draw random numbers only if self.training",
    "seeded": r"draws random numbers \(aten.rand in .*\(Odd\)\)",
    "values": "cannot be exported to ONNX at .*exporting_user_code.py, line .*control flow that depends on values",
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_an_export_would_refuse_is_refused_before_training(how: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[how]):
        tried(how)


@pytest.mark.parametrize("how", ["plain", "float16", "bfloat16", "dropout"])
def test_what_an_export_takes_is_taken(how: str) -> None:
    assert tried(how) == 8


def heard(kind: str) -> int:
    source = "module:exporting_user_code:Recurrent"
    return probe("sound", source, build_encoder(source, {"kind": kind}), speaker_preprocessing())


def test_an_lstm_keeps_its_length_open() -> None:
    assert heard("LSTM") == MEL_BINS


@pytest.mark.slow
def test_a_recurrent_network_of_one_length_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot be exported .*length|does not run on"):
        heard("GRU")


def test_weights_and_features_in_half_precision_become_float32() -> None:
    encoder = build_encoder("module:exporting_user_code:half", {})
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {torch.float32}
    half = {name: tensor.half() for name, tensor in encoder.state_dict().items()}
    spec = EncoderSpec("module:exporting_user_code:Odd", {"how": "float16"}, 8)
    frozen = Stage1Modality(spec, half, ImagePreprocessor(32, 32)).build()
    features, _ = frozen(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert features.dtype == torch.float32
