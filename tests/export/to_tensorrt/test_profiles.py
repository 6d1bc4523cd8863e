"""Optimization profiles as the command line spells them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fluxtalk.artifacts.bundle import Bundle, Manifest, ModalityEntry, PrecisionEntry, TensorSpec
from fluxtalk.artifacts.engine import default_profile
from fluxtalk.errors import UsageError
from fluxtalk.export.to_tensorrt.profiles import format_profile, parse_profile, profiles_of, sizes_at
from fluxtalk.scoring.parity import TOLERANCES

EVERY = ("image", "text", "track")


@pytest.fixture
def bundle() -> Bundle:
    """A manifest with an image, a text of at most 32 tokens, and features of any length; nothing is on disk."""

    def entry(*inputs: TensorSpec, **preprocess: Any) -> ModalityEntry:
        index = TensorSpec("token_index", "int64", ["k"])
        return ModalityEntry({"fp32": "x.onnx"}, [*inputs, index], preprocess.get("max_length"), preprocess, {})

    mask = TensorSpec("mask", "bool", ["batch", "length"])
    pixels, ids = TensorSpec("pixels", "uint8", ["batch", 32, 32, 3]), TensorSpec("input_ids", "int64", mask.shape)
    features = TensorSpec("features", "float32", ["batch", "length", 7])

    manifest = Manifest(
        num_register_tokens=4,
        num_overlapping_tokens=3,
        trained_register_tokens=4,
        dim=48,
        opset=20,
        outputs=["tokens", "embeddings"],
        precisions={"fp32": PrecisionEntry(TOLERANCES["fp32"])},
        modalities={
            "image": entry(pixels, kind="image"),
            "text": entry(ids, mask, kind="text", max_length=32),
            "track": entry(features, mask, kind="features", dim=7),
        },
        files={},
        golden="golden.safetensors",
        stage1_hash="0",
        head_hash="0",
        identity={},
    )
    return Bundle(Path("nowhere"), manifest)


def test_the_issues_example(bundle: Bundle) -> None:
    found = profiles_of(bundle, EVERY, ["image:batch=1,8,64:k=1,3,4", "text:batch=1,16,128:length=8,16,32:k=1,3,4"])
    assert found["image"] == [{"batch": [1, 8, 64], "k": [1, 3, 4]}]
    assert found["text"] == [{"batch": [1, 16, 128], "length": [8, 16, 32], "k": [1, 3, 4]}]
    assert found["track"] == [default_profile(bundle.manifest, "track")]


def test_defaults_cover_every_k_and_every_length(bundle: Bundle) -> None:
    assert default_profile(bundle.manifest, "image") == {"batch": [1, 8, 64], "k": [1, 4, 4]}
    assert default_profile(bundle.manifest, "text") == {"batch": [1, 8, 64], "length": [1, 32, 32], "k": [1, 4, 4]}
    assert default_profile(bundle.manifest, "track") == {"batch": [1, 8, 64], "length": [1, 64, 512], "k": [1, 4, 4]}
    assert profiles_of(bundle, ["text"], []) == {"text": [default_profile(bundle.manifest, "text")]}


def test_axes_may_come_in_any_order_and_be_left_out(bundle: Bundle) -> None:
    found = profiles_of(bundle, EVERY, ["text:k=1,1,2:batch=2,2,2", "text:length=1,2,3"])["text"]
    assert found == [
        {"batch": [2, 2, 2], "length": [1, 32, 32], "k": [1, 1, 2]},
        {"batch": [1, 8, 64], "length": [1, 2, 3], "k": [1, 4, 4]},
    ]
    # The order of the axes must not make another engine of the same sizes.
    assert [[*profile] for profile in found] == [["batch", "length", "k"]] * 2


def test_spelled_is_what_is_parsed(bundle: Bundle) -> None:
    for modality in EVERY:
        profile = default_profile(bundle.manifest, modality)
        assert parse_profile(f"{modality}:{format_profile(profile)}") == (modality, profile)


def test_sizes_of_an_input(bundle: Bundle) -> None:
    profile = default_profile(bundle.manifest, "track")
    assert [sizes_at(profile, ["batch", "length", 7], which) for which in range(3)] == [
        (1, 1, 7),
        (8, 64, 7),
        (64, 512, 7),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text", "MODALITY:AXIS=MIN,OPT,MAX"),
        (":batch=1,2,3", "MODALITY:AXIS=MIN,OPT,MAX"),
        ("sound:batch=1,2,3", "'sound'.*image, text, track"),
        ("text:width=1,2,3", "'width'.*batch, length, k"),
        ("text:batch=1,2,3:batch=1,2,3", "batch twice"),
        ("text:batch=1,2", "batch is three whole numbers.*'1,2'"),
        ("text:batch=1,2,3,4", "batch is three whole numbers"),
        ("text:batch=0,2,3", "1 <= MIN"),
        ("text:batch=4,2,8", "MIN <= OPT"),
        ("text:batch=1,9,8", "OPT <= MAX"),
        ("text:batch=a,b,c", "batch is three whole numbers"),
        ("text:batch", "batch is three whole numbers"),
        ("text:k=1,4,5", "4 register tokens"),
        ("text:length=1,16,33", "at most 32 tokens"),
        ("image:length=1,2,3", "image has no length"),
    ],
)
def test_impossible_profiles_are_refused(bundle: Bundle, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        profiles_of(bundle, EVERY, [text])


def test_a_profile_twice_or_of_what_is_not_compiled(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="twice"):
        profiles_of(bundle, EVERY, ["text:k=1,2,3", "text:k=1,2,3:batch=1,8,64"])
    with pytest.raises(UsageError, match="compiled are image"):
        profiles_of(bundle, ["image"], ["text:k=1,2,3"])
