"""Files of weights: prefixes are found out, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fluxtalk.errors import CheckpointError
from fluxtalk.train.stage1.sources.weights import find_prefix, fit_weights, read_weights


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def _named(prefix: str, model: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "model.", "module.backbone."])
def test_a_prefix_is_found_out(prefix: str) -> None:
    source, target = _model(), _model()
    weights = {**_named(prefix, source), **({"head.weight": torch.zeros(2)} if prefix else {})}
    stored = fit_weights(target, weights, "The weights do not fit")
    assert list(stored) == list(target.state_dict())
    assert torch.equal(target.state_dict()["0.weight"], source.state_dict()["0.weight"])


def test_half_precision_weights_are_returned_as_they_are() -> None:
    target = _model()
    stored = fit_weights(target, _named("", _model().half()), "The weights do not fit")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert target.state_dict()["0.weight"].dtype == torch.float32


def test_missing_excess_and_other_shapes_are_named() -> None:
    weights = _named("", _model())
    weights["5.weight"] = weights.pop("1.weight")
    weights["0.weight"] = torch.zeros(5, 3)
    with pytest.raises(CheckpointError) as caught:
        fit_weights(_model(), weights, "The weights w.pth do not fit mine")
    assert str(caught.value) == (
        "The weights w.pth do not fit mine: missing 1.weight; in excess 5.weight; "
        "of another shape 0.weight (5x3 and not 4x3)."
    )


def test_a_classifier_may_be_in_excess() -> None:
    weights = {**_named("", _model()), "head.weight": torch.zeros(2), "head.bias": torch.zeros(2)}
    fit_weights(_model(), weights, "The weights do not fit", ignored=("head",))


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_what_a_training_script_wrapped_is_unwrapped(key: str, tmp_path: Path) -> None:
    torch.save({key: _named("", _model()), "epoch": 3}, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth")) == list(_model().state_dict())


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(_named("a.", _model()), tmp_path / "w.safetensors")
    assert find_prefix(_model().state_dict(), read_weights(tmp_path / "w.safetensors")) == "a."
