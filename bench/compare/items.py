"""Items that the contenders embed: texts of an exact number of tokens, and pictures in files."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

_SPECIAL = 2
"""Tokens that a BERT-like tokenizer adds to a text."""


def texts(tokenizer: Path, tokens: int, count: int, seed: int = 0) -> list[str]:
    """Write texts that the tokenizer reads as exactly ``tokens`` tokens, the special ones included.

    Args:
        tokenizer: a ``tokenizer.json``.
    """
    read = Tokenizer.from_file(str(tokenizer))
    read.no_padding()
    read.no_truncation()
    words = sorted(word for word in read.get_vocab() if word.isascii() and word.isalpha() and len(word) > 3)
    draw = random.Random(seed)
    found = [" ".join(draw.choices(words, k=tokens - _SPECIAL)) for _ in range(count)]
    lengths = {len(encoded.ids) for encoded in read.encode_batch(found)}
    if lengths != {tokens}:
        raise ValueError(f"texts of {tokens} tokens were read as {sorted(lengths)}")
    return found


def names(count: int, seed: int = 0) -> list[str]:
    """Draw the names of so many symbols of Unicode, in lower case, such as "snowman without snow", each once."""
    symbols = [chr(code) for code in range(0x2000, 0x20000) if unicodedata.category(chr(code)).startswith("S")]
    found = sorted({unicodedata.name(symbol, "").lower() for symbol in symbols} - {""})
    return random.Random(seed).sample(found, count)


def pictures(folder: Path, count: int, side: int = 320, seed: int = 0) -> list[str]:
    """Write JPEG files of smooth noise, which take as long to decode as photographs do; give their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        path = folder / f"{side}-{seed}-{number}.jpg"
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
        found.append(str(path))
    return found
