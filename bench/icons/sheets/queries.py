"""A picture of text queries against icons that training never saw, found by an exported bundle."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.icons.tables import Member, read_members
from bench.query_sheet import ANSWERS, Query, draw_queries
from fluxtalk.errors import DataError
from fluxtalk.runtime import load

_QUERIES = 6
_STYLES = 3
"""Styles in which a thing is drawn at least, to be asked for without being named."""


def draw_names(pictures: Sequence[Member], count: int, seed: int = 0) -> list[str]:
    """Draw names at random among things that several styles show, so that nobody picks what looks well."""
    styles: dict[str, set[str]] = {}
    for picture in pictures:
        styles.setdefault(picture.name, set()).add(picture.style)
    known = sorted(name for name, drawn in styles.items() if len(drawn) >= _STYLES)
    return random.Random(seed).sample(known, min(count, len(known)))


def held_out_pictures(members: Sequence[Member]) -> list[Member]:
    """List the pictures of the test split that may be shown."""
    return [member for member in members if member.split == "test" and member.shown]


def draw_icon_queries(root: Path, bundle: Path, texts: Sequence[str], output: Path) -> int:
    """Draw the nearest test pictures of the data set in ``root`` for each text; a right one has the text for its name.

    Args:
        texts: queries; none for the names of six things drawn at random.

    Returns:
        The number of pictures that were searched.

    Raises:
        DataError: there is no data set in ``root``, or too few of its test pictures may be shown.
    """
    pictures = held_out_pictures(read_members(root))
    if len(pictures) < ANSWERS:
        raise DataError(
            f"{root} has {len(pictures)} test pictures that may be shown, and the picture needs {ANSWERS}; "
            "build it with sets whose license allows it."
        )
    texts = list(texts) or draw_names(pictures, _QUERIES)
    embedder = load(bundle)
    vectors = embedder.embed("image", [root / picture.image for picture in pictures])
    queries = []
    for text, scores in zip(texts, embedder.embed("text", texts) @ vectors.T, strict=True):
        found = [pictures[i] for i in np.argsort(-scores)[:ANSWERS]]
        queries.append(Query(text, [_on_white(root / one.image) for one in found], [one.name == text for one in found]))
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_queries(queries, output)
    return len(pictures)


def _on_white(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        icon = opened.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", icon.size, "white"), icon).convert("RGB"))
