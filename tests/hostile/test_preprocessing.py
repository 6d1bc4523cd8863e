"""Preprocessing as specifications and artifacts state it, with malformed values in every field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluxtalk.artifacts.files import hash_bytes
from fluxtalk.errors import FluxTalkError
from fluxtalk.preprocess import TextPreprocessor, from_parts
from tests.hostile.values import MALFORMED, malformed, require_sentence
from tests.preprocess.examples import tokenizer_json

TOKENIZER = tokenizer_json(special_tokens=True)
SPECTROGRAM = {
    "mel_bins": 8,
    "window_length": 400,
    "hop_length": 160,
    "fft_length": 512,
    "min_frequency": 0.0,
    "max_frequency": 8000.0,
    "mel_scale": "slaney",
    "logarithm": "ln",
    "floor": 1e-10,
    "fill": "none",
    "dynamic_range": None,
    "mean": 0.0,
    "std": 1.0,
}
PARTS: dict[str, dict[str, Any]] = {
    "image": {
        "kind": "image",
        "height": 8,
        "width": 12,
        "channels": 3,
        "resize": "squash",
        "filter": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "resize_to": [8, 12],
        "size_rounding": "down",
        "offset_rounding": "down",
        "fill": [0, 0, 0],
        "background": [255, 255, 255],
    },
    "audio": {"kind": "audio", "sample_rate": 16000, "max_length": 16000, "normalize": True},
    "spectrogram": {"kind": "audio", "sample_rate": 16000, "max_length": 16000, "features": SPECTROGRAM},
    "features": {"kind": "features", "dim": 4},
    "text": {
        "kind": "text",
        "max_length": 8,
        "tokenizer_sha256": hash_bytes(TOKENIZER.encode()),
        "truncation_side": "left",
        "pad_id": 0,
        "pad_side": "right",
        "lowercase": True,
        "unescape_html": True,
        "prompts": {"query": "black "},
        "default_prompt_name": "query",
    },
}
ITEMS: dict[str, Any] = {
    "image": np.zeros((3, 5, 3), np.uint8),
    "audio": (np.zeros(4000, np.float32), 16000),
    "features": np.ones((2, 4), np.float32),
    "text": "black queen",
}


def test_the_parts_are_right_as_they_are() -> None:
    for parts in PARTS.values():
        assert from_parts(parts, {"tokenizer.json": TOKENIZER}) is not None


@pytest.mark.parametrize("kind", PARTS)
def test_settings_of_preprocessing(kind: str) -> None:
    refused = 0
    for what, parts in malformed(PARTS[kind]):

        def read(parts: Any = parts) -> None:
            if not isinstance(parts, dict):
                return
            made = from_parts(parts, {"tokenizer.json": TOKENIZER})
            json.dumps(made.to_parts()[0])
            # A size of a thousand million is a size: what is allowed is not all computed here.
            if all(size < 1 << 16 for size in (getattr(made, "height", 0), getattr(made, "width", 0))):
                made.prepare(ITEMS[made.kind])

        refused += require_sentence(read, f"{kind}: {what}")
    assert refused > 50


def test_every_part_of_a_tokenizer(tmp_path: Path) -> None:
    """The library that reads it is native code, and panics are no exceptions."""
    content = json.loads(TOKENIZER)
    refused = 0
    for what, changed in malformed(content):
        try:
            text = json.dumps(changed)
        except ValueError:
            continue

        def read(text: str = text) -> None:
            preprocess = TextPreprocessor(text, 8)
            for item in ("black queen", "white nothing " * 9):
                preprocess.prepare(item)

        refused += require_sentence(read, f"tokenizer.json: {what}")
    assert refused > 300


@pytest.mark.parametrize("kind", ITEMS)
def test_items_that_are_none(kind: str, tmp_path: Path) -> None:
    preprocess = from_parts(PARTS[kind], {"tokenizer.json": TOKENIZER})
    items = [*MALFORMED, b"", b"\x89PNG\r\n\x1a\n", tmp_path, tmp_path / ("x" * 300), Path("\0"), object()]
    items += [np.zeros(0), np.zeros((0, 4)), np.array(["a"]), np.zeros((2, 2, 2, 2)), np.array(None), (1, 2), ([], 0)]
    for item in items:
        require_sentence(lambda item=item: preprocess.prepare(item), f"{kind}: {item!r:.60}")  # type: ignore[misc]
    with pytest.raises(FluxTalkError):
        preprocess.prepare(None)
