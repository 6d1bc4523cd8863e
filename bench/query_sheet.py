"""A picture of text queries and the images found for them, the right ones framed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANSWERS = 10
"""Images shown for a query."""


@dataclass(frozen=True)
class Query:
    """One text query and the images found for it, nearest first.

    ``images`` are uint8, (H, W) gray or (H, W, 3) RGB, as they are to be seen.
    """

    text: str
    images: list[NDArray[np.uint8]]
    right: list[bool]


def draw_queries(queries: Sequence[Query], path: Path) -> None:
    """Draw one row per query: the images found, the right ones framed."""
    plt = pyplot()
    figure, axes = plt.subplots(len(queries), ANSWERS, figsize=(8.6, 1.12 * len(queries)), dpi=130)
    for row, query in zip(axes, queries, strict=True):
        for axis, image, right in zip(row, query.images, query.right, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color="#1c8a43" if right else "0.85", linewidth=2.5 if right else 0.8)
        row[0].set_title(f"“{query.text}”", loc="left", fontsize=9)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.955, bottom=0.01, hspace=0.42, wspace=0.08)
    figure.savefig(path)
    plt.close(figure)


def pyplot() -> Any:
    """Import matplotlib's pyplot for drawing without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module
