"""Errors of a user's code, when an encoder is wrapped and when it encodes: one sentence that says where."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from fluxtalk.datasets import PairDataset
from fluxtalk.errors import DataError, UsageError
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.train.features.encoding import Encoding
from fluxtalk.train.features.sources import OnlineFeatures, cached_features
from fluxtalk.train.stage1.cli import main
from fluxtalk.train.stage1.create import stage1_from_specification
from tests.train.features.given_features import CPU, DIM, given, ragged

CODE = """
import torch

class Text(torch.nn.Module):
    def __init__(self, tokens, positions):
        super().__init__()
        self.tokens, self.positions = torch.nn.Embedding(tokens, 4), torch.nn.Embedding(positions, 4)

    def forward(self, input_ids, mask):
        return self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))

class Broken(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, *inputs):
        if self.how == "tuple":
            return (torch.zeros(2, 1, 4),)
        if self.how == "dictionary":
            return {"last_hidden_state": torch.zeros(2, 1, 4)}
        raise {"value": ValueError("no value"), "assert": AssertionError(), "index": IndexError("beyond"),
               "key": KeyError("name"), "arithmetic": ZeroDivisionError("by zero")}[self.how]

class Picky(torch.nn.Module):
    def forward(self, features, mask):
        if (features == 77).any():
            raise KeyError("seventy-seven")
        return features

def text(tokens=10, positions=6):
    return Text(tokens, positions)

def broken(how):
    return Broken(how)

def imports():
    import fluxtalk_no_such_package

def fails():
    raise RuntimeError("the weights went away")

def deep():
    return len(7)

def picky():
    return Picky()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's modules on the path, and a tokenizer of ten tokens, the largest of which is 9."""
    (tmp_path / "probe_user_code.py").write_text(CODE)
    (tmp_path / "probe_no_import.py").write_text("raise RuntimeError('no license')")
    monkeypatch.syspath_prepend(str(tmp_path))
    vocabulary = {"[UNK]": 0} | {f"w{i}": i for i in range(1, 10)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    yield tmp_path
    sys.modules.pop("probe_user_code", None)


def _created(folder: Path, factory: str, options: dict[str, Any]) -> Stage1:
    text = {
        "encoder": f"module:{factory}",
        "options": options,
        "preprocess": {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 6},
    }
    (folder / "encoders.json").write_text(json.dumps({"modalities": {"text": text}}))
    return stage1_from_specification(folder / "encoders.json")


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "too-short": ("text", {"positions": 5}, r"fails on a text of 6 tokens, its max_length: IndexError: .*max_length"),
    "too-few-tokens": ("text", {"tokens": 9}, r"fails on token 9, the largest .*IndexError: .*embeddings"),
    "value": ("broken", {"how": "value"}, "one text input: ValueError: no value"),
    "assert": ("broken", {"how": "assert"}, "one text input: AssertionError;"),
    "index": ("broken", {"how": "index"}, "one text input: IndexError: beyond"),
    "key": ("broken", {"how": "key"}, "one text input: KeyError: 'name'"),
    "arithmetic": ("broken", {"how": "arithmetic"}, "one text input: ZeroDivisionError: by zero"),
    "tuple": ("broken", {"how": "tuple"}, r"tuple of two.*gave a tuple of 1 \(Tensor\)"),
    "dictionary": ("broken", {"how": "dictionary"}, "a tensor of features.* gave dict"),
    "imports": ("imports", {}, "fails: ModuleNotFoundError: .*fluxtalk_no_such_package.*install what it imports"),
    "fails": ("fails", {}, "fails: RuntimeError: the weights went away"),
    "deep": ("deep", {}, "fails: TypeError: object of type 'int' has no len"),
    "options": ("deep", {"depth": 1}, "does not take these options: .*depth"),
}


@pytest.mark.parametrize(("factory", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_whatever_an_encoder_raises_is_one_sentence(
    folder: Path, factory: str, options: dict[str, Any], words: str
) -> None:
    """The sentence names the source; --debug shows the traceback."""
    with pytest.raises(UsageError, match=words) as caught:
        _created(folder, f"probe_user_code:{factory}", options)
    assert f"module:probe_user_code:{factory}" in str(caught.value)
    assert "\n" not in str(caught.value)
    arguments = ["create", str(folder / "encoders.json"), "-o", str(folder / "stage1.pth")]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stderr) == (2, f"error: {caught.value}\n")
    debugged = CliRunner().invoke(main, [*arguments, "--debug"])
    assert isinstance(debugged.exception, UsageError)
    assert debugged.exception.__cause__ is not None
    assert not (folder / "stage1.pth").exists()


def test_a_module_that_fails_when_it_is_imported(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"probe_no_import:make cannot be imported \(RuntimeError: no license\)"):
        _created(folder, "probe_no_import:make", {})


def test_an_encoder_that_takes_all_it_will_be_given_is_wrapped(folder: Path) -> None:
    assert _created(folder, "probe_user_code:text", {}).modalities["text"].spec.dim == 4


def _cached(stage1: Stage1, data: PairDataset, folder: Path) -> None:
    cached_features(stage1, data, "train", "sound", folder / "cache", CPU)


def _online(stage1: Stage1, data: PairDataset, _: Path) -> None:
    OnlineFeatures(Encoding.of(stage1, data.split("train"), "sound", CPU)).batch(np.arange(20, 40))


@pytest.mark.parametrize("encode", [_cached, _online])
def test_the_item_on_which_an_encoder_fails_is_named(folder: Path, encode: Callable[..., None]) -> None:
    """Among forty, in whatever batch it was."""
    values = ragged()
    values[29] = np.full((2, DIM), 77, dtype=np.float32)
    stage1, data = given(values, "module:probe_user_code:picky")
    with pytest.raises(DataError, match="Item 29 of sound in the train split") as caught:
        encode(stage1, data, folder)
    assert "(id 'id 29')" in str(caught.value)
    assert "module:probe_user_code:picky fails: KeyError: 'seventy-seven'" in str(caught.value)
    assert str(caught.value).count("Item 29") == 1
    if encode is _online:
        assert isinstance(caught.value.__cause__, KeyError)


class _OnlyAlone(nn.Module):
    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        if len(features) > 1:
            raise RuntimeError("out of memory")
        return features


def test_a_batch_that_fails_although_each_item_works_is_said(folder: Path) -> None:
    stage1, data = given(ragged())
    encoding = Encoding.of(stage1, data.split("train"), "sound", CPU)
    encoding.encoder.encoder = _OnlyAlone()
    with pytest.raises(
        DataError, match=r"Some of 3 items, the first of which is: Item 4 .*RuntimeError: out of memory"
    ):
        OnlineFeatures(encoding).batch(np.array([4, 5, 6]))
    assert torch.equal(OnlineFeatures(encoding).batch(np.array([4])).mask_BL, torch.ones(1, 5, dtype=torch.bool))
