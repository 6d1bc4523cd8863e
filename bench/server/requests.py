"""The requests that the server is measured with, the same in every run; and those that must harm nobody."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from bench.server.client import post, post_json

PATH = "/v1/embeddings"
_WORDS = (
    *("greek", "cyrillic", "latin", "small", "capital", "letter", "digit", "black", "white", "chess", "queen", "rook"),
    *("circle", "square", "arrow", "right", "left", "upwards", "heavy", "light", "box", "drawings", "with", "sign"),
)
_IMAGE_SIDES = (32, 64, 224)


@dataclass(frozen=True)
class LoadRequest:
    """One embedding request, and its bytes."""

    modality: str
    items: Sequence[Any]
    """Texts, or images as uint8 arrays."""
    k: int
    output: str

    @property
    def num_items(self) -> int:
        """Number of items, each of which gets a vector."""
        return len(self.items)

    def encoded(self, **headers: str) -> bytes:
        """The request as bytes: vectors are asked for in base64, as OpenAI's client does."""
        values = [item if isinstance(item, str) else base64.b64encode(png(item)).decode() for item in self.items]
        body = {"input": values, "modality": self.modality, "k": self.k, "output": self.output}
        return post_json(PATH, {**body, "encoding_format": "base64"}, **headers)


def texts(rng: np.random.Generator, count: int, longest: int = 24) -> list[str]:
    """Texts of 1 to ``longest`` words."""
    return [" ".join(rng.choice(_WORDS, rng.integers(1, longest + 1))) for _ in range(count)]


def one_text(text_modality: str, num_tokens: int, count: int = 256) -> list[LoadRequest]:
    """One short text a request (four words), all tokens: the smallest request there is."""
    rng = np.random.default_rng(1)
    return [LoadRequest(text_modality, [" ".join(rng.choice(_WORDS, 4))], num_tokens, "pooled") for _ in range(count)]


def mixed(kinds: dict[str, str], num_tokens: int, count: int = 256) -> list[LoadRequest]:
    """Requests as a busy server gets them: 1 to 16 texts of 1 to 24 words, one request in four with 1 to 4 images of
    several sizes, every k, and one request in eight for all tokens.

    Args:
        kinds: modality to its kind, as ``/info`` says it; those that are neither text nor image are left out.
    """
    rng = np.random.default_rng(2)
    by_kind = {kind: modality for modality, kind in kinds.items()}
    workload = []
    for number in range(count):
        k = int(rng.integers(1, num_tokens + 1))
        output = "tokens" if number % 8 == 7 else "pooled"
        if "image" in by_kind and (number % 4 == 3 or "text" not in by_kind):
            side = int(rng.choice(_IMAGE_SIDES))
            images = [rng.integers(0, 256, (side, side), dtype=np.uint8) for _ in range(rng.integers(1, 5))]
            workload.append(LoadRequest(by_kind["image"], images, k, output))
        else:
            workload.append(LoadRequest(by_kind["text"], texts(rng, int(rng.integers(1, 17))), k, output))
    return workload


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """An image file of a uint8 array."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def harmful(kinds: dict[str, str], max_items: int) -> dict[str, bytes]:
    """Requests that cannot or should hardly be served, by what is wrong with them."""
    by_kind = {kind: modality for modality, kind in kinds.items()}
    requests = {"broken JSON": post(PATH, b'{"input": "a')}
    if "text" in by_kind:
        text = by_kind["text"]
        rng = np.random.default_rng(3)
        requests["too many items"] = post_json(PATH, {"input": ["a"] * 10_000, "modality": text})
        requests["a megabyte of text"] = post_json(PATH, {"input": "a " * (1 << 19), "modality": text})
        requests[f"{max_items} texts"] = post_json(PATH, {"input": texts(rng, max_items), "modality": text})
    if "image" in by_kind:
        whole = png(np.zeros((64, 64), dtype=np.uint8))
        for name, file in (("a truncated image", whole[: len(whole) // 2]), ("a decompression bomb", bomb())):
            body = {"input": [base64.b64encode(file).decode()], "modality": by_kind["image"]}
            requests[name] = post_json(PATH, body)
    return requests


def bomb(side: int = 13_000) -> bytes:
    """A PNG of some kilobytes that is enormous when it is decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes((side + 7) // 8)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(row * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
