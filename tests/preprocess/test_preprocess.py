"""Preprocessing of texts and features, and the parts that a preprocessor is stored as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from fluxtalk.errors import ArtifactError, InputError
from fluxtalk.preprocess import (
    FeaturesPreprocessor,
    ImagePreprocessor,
    Preprocessor,
    TextPreprocessor,
    from_parts,
    pad_and_mask,
)
from tests.preprocess.examples import WORDS, picture, tokenizer_json


def test_text_is_the_tokenizers_ids() -> None:
    preprocess = TextPreprocessor(tokenizer_json(), 10)
    assert preprocess.prepare("black chess queen").tolist() == [3, 5, 6]
    assert preprocess.prepare("black").dtype == np.int64


@pytest.mark.parametrize("special_tokens", [False, True])
@pytest.mark.parametrize("max_length", [3, 4, 5, 6, 9])
def test_text_is_truncated_at_max_length(max_length: int, special_tokens: bool) -> None:
    preprocess = TextPreprocessor(tokenizer_json(special_tokens), max_length)
    words = [3, 5, 6, 4, 7, 6]
    room = max_length - 2 * special_tokens
    expected = [1, *words[:room], 2] if special_tokens else words[:room]
    assert preprocess.prepare(" ".join(WORDS[word] for word in words)).tolist() == expected


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("", "empty or blank"),
        (" \t\n\u3000", "empty or blank"),
        (b"black", "got bytes"),
        (None, "got NoneType"),
        (["black"], "got list"),
        ("black \ud800", "surrogates"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(item: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TextPreprocessor(tokenizer_json(), 10).prepare(item)


def test_a_text_without_tokens_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())  # without an unknown token
    with pytest.raises(InputError, match="'word' has no token"):
        TextPreprocessor(str(tokenizer.to_str()), 4).prepare("word")


def test_texts_are_padded_to_the_longest_with_a_mask() -> None:
    preprocess = TextPreprocessor(tokenizer_json(), 10)
    batch = preprocess.collate([preprocess.prepare(text) for text in ("black", "white chess king", "black queen")])
    assert list(batch) == ["input_ids", "mask"]
    assert batch["input_ids"].tolist() == [[3, 0, 0], [4, 5, 7], [3, 6, 0]]
    assert batch["mask"].tolist() == [[True, False, False], [True, True, True], [True, True, False]]


def test_a_tokenizer_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json cannot be read"):
        TextPreprocessor("{}", 10)


def test_features_are_read_from_arrays_and_files(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 3))
    np.save(tmp_path / "f.npy", values)
    preprocess = FeaturesPreprocessor(3)
    for item in (values, tmp_path / "f.npy", str(tmp_path / "f.npy")):
        prepared = preprocess.prepare(item)
        assert prepared.dtype == np.float32
        assert np.array_equal(prepared, values.astype(np.float32))
    assert preprocess.prepare(values[0]).shape == (1, 3)
    assert preprocess.prepare(np.array([[1, 2, 3]], dtype=np.uint8)).tolist() == [[1.0, 2.0, 3.0]]


def test_features_are_padded_with_a_mask() -> None:
    preprocess = FeaturesPreprocessor(2)
    batch = preprocess.collate([np.ones((1, 2), dtype=np.float32), np.full((3, 2), 2, dtype=np.float32)])
    assert batch["features"].tolist() == [[[1, 1], [0, 0], [0, 0]], [[2, 2], [2, 2], [2, 2]]]
    assert batch["mask"].tolist() == [[True, False, False], [True, True, True]]
    assert [preprocess.length(row) for row in (np.ones((1, 2)), np.ones((3, 2)))] == [1, 3]


@pytest.mark.parametrize(
    "item",
    [
        np.zeros((4, 2)),
        np.zeros((0, 3)),
        np.zeros((1, 4, 3)),
        np.array([[1.0, np.nan, 0.0]]),
        np.array([[1.0, np.inf, 0.0]]),
        np.array([[1e300, 0.0, 0.0]]),
        np.array([["a", "b", "c"]]),
        np.array([[1j, 0, 0]]),
        [[1.0, 2.0, 3.0]],
    ],
    ids=repr,
)
def test_features_that_cannot_be_used_are_refused(item: Any) -> None:
    with pytest.raises(InputError):
        FeaturesPreprocessor(3).prepare(item)


def test_feature_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    preprocess = FeaturesPreprocessor(3)
    with pytest.raises(InputError, match=r"gone\.npy do not exist"):
        preprocess.prepare(tmp_path / "gone.npy")
    np.save(tmp_path / "whole.npy", np.zeros((5, 3)))
    data = (tmp_path / "whole.npy").read_bytes()
    for name, content in (("half.npy", data[:-9]), ("empty.npy", b""), ("text.npy", b"1 2 3")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            preprocess.prepare(tmp_path / name)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    np.save(tmp_path / "evil.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"evil\.npy cannot be read"):
        FeaturesPreprocessor(3).prepare(tmp_path / "evil.npy")
    assert not (tmp_path / "ran").exists()


def test_pad_and_mask_pads_with_zeros_at_the_end() -> None:
    values, mask = pad_and_mask([np.array([5]), np.array([6, 7])], np.int64)
    assert values.tolist() == [[5, 0], [6, 7]]
    assert mask.tolist() == [[True, False], [True, True]]


def _examples() -> list[tuple[Preprocessor, Any]]:
    return [
        (ImagePreprocessor(8, 6, 1, "squash", "lanczos", (0.1,), (0.9,)), picture()),
        (ImagePreprocessor(8, 6, 3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)), picture()),
        (TextPreprocessor(tokenizer_json(True), 4), "black white chess king queen"),
        (FeaturesPreprocessor(3), np.arange(6.0).reshape(2, 3)),
    ]


@pytest.mark.parametrize("number", range(4))
def test_parts_go_there_and_back(number: int) -> None:
    original, item = _examples()[number]
    config, files = original.to_parts()
    again = from_parts(json.loads(json.dumps(config)), files)
    assert type(again) is type(original)
    assert again.to_parts() == (config, files)
    assert np.array_equal(again.prepare(item), original.prepare(item))
    assert again.input_names == original.input_names


@pytest.mark.parametrize("number", range(4))
def test_unknown_and_missing_settings_are_refused(number: int) -> None:
    config, files = _examples()[number][0].to_parts()
    with pytest.raises(ArtifactError, match="unknown settings color"):
        from_parts({**config, "color": 1}, files)
    for name in ("height", "max_length", "dim"):
        if name in config:
            with pytest.raises(ArtifactError, match="incomplete or malformed"):
                from_parts({key: value for key, value in config.items() if key != name}, files)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ArtifactError, match="got 'video'"):
        from_parts({"kind": "video"}, {})


def test_a_changed_or_missing_tokenizer_is_refused() -> None:
    config, files = TextPreprocessor(tokenizer_json(), 4).to_parts()
    assert list(files) == ["tokenizer.json"]
    with pytest.raises(ArtifactError, match=r"tokenizer\.json was changed"):
        from_parts(config, {"tokenizer.json": files["tokenizer.json"].replace("queen", "Queen")})
    with pytest.raises(ArtifactError, match=r"names tokenizer\.json, which is missing"):
        from_parts(config, {})
