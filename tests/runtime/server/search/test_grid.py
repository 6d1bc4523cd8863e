"""The grid in which an image's features lie, guessed from their number and the picture's size."""

from __future__ import annotations

import pytest

from fluxtalk.runtime.server.search.attention import grid_of


@pytest.mark.parametrize(
    ("length", "size", "grid"),
    [
        (16, (32, 32), (4, 4)),
        (196, (224, 224), (14, 14)),
        (197, (224, 224), (14, 14)),  # a class token before them
        (261, (224, 224), (16, 16)),  # and four registers of the encoder
        (129, (256, 128), (16, 8)),
        (40, (256, 255), None),
    ],
)
def test_how_features_lie_over_an_image(length: int, size: tuple[int, int], grid: tuple[int, int] | None) -> None:
    assert grid_of(length, *size) == grid
