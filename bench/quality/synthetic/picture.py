"""The picture of the synthetic proof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fluxtalk.artifacts.files import atomic_file

_BARS = {
    "private_by_complementary": "own private factors,\nfrom complementary",
    "shared_by_complementary": "shared factors,\nfrom complementary",
    "private_by_pooled": "own private factors,\nfrom shared embedding",
    "others_private_by_complementary": "other's private factors,\nfrom complementary",
}


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Draw what is private and what is ordered, side by side."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    _private(figure.add_subplot(grid[0, :]), summary)
    _directions(figure.add_subplot(grid[1, 0]), summary)
    _gains(figure.add_subplot(grid[1, 1]), summary)
    _ahead(figure.add_subplot(grid[1, 2]), summary)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _private(axes: Axes, summary: Mapping[str, Any]) -> None:
    names = list(summary["factors"])
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        results = summary["factors"][name]
        axes.bar(
            np.arange(len(_BARS)) + (index - (len(names) - 1) / 2) * width,
            [results[key]["mean"] for key in _BARS],
            width,
            yerr=[results[key]["deviation"] for key in _BARS],
            label=summary["labels"][name],
        )
    axes.set_xticks(range(len(_BARS)), list(_BARS.values()))
    axes.set_ylabel("R² on held-out items")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_title("What is read from which token (linear probe); in all panels mean and deviation over seeds")
    axes.legend()


def _directions(axes: Axes, summary: Mapping[str, Any]) -> None:
    result = summary["order"]["nested"]
    correlations = [c["mean"] for c in result["correlations"]]
    numbers = np.arange(1, len(correlations) + 1)
    axes.plot(numbers, np.square(correlations), "k--", label="squared canonical correlation")
    for k, values in result["by_direction"].items():
        axes.errorbar(
            numbers, [v["mean"] for v in values], [v["deviation"] for v in values], marker="o", label=f"tokens 1..{k}"
        )
    axes.set_xticks(numbers)
    axes.set_xlabel("canonical direction, the most shared first")
    axes.set_ylabel("R² on held-out items")
    axes.set_title("Nested tokens learn shared directions in their order")
    axes.legend(fontsize=8)


def _gains(axes: Axes, summary: Mapping[str, Any]) -> None:
    names = list(summary["order"])
    ticks = np.arange(1, len(summary["order"]["nested"]["gain"]) + 1)
    width = 0.8 / (len(names) + 1)
    for index, name in enumerate(names):
        result = summary["order"][name]
        axes.bar(
            ticks + (index - len(names) / 2) * width,
            [g["mean"]["mean"] for g in result["gain"].values()],
            width,
            yerr=[g["mean"]["deviation"] for g in result["gain"].values()],
            label=summary["labels"][name],
        )
    shuffled = summary["order"]["nested"]["gain_shuffled"].values()
    axes.bar(
        ticks + len(names) / 2 * width,
        [g["mean"] for g in shuffled],
        width,
        yerr=[g["deviation"] for g in shuffled],
        color="lightgray",
        label="nested, registers shuffled",
    )
    axes.set_xticks(ticks)
    axes.set_xlabel("token")
    axes.set_ylabel("gain in R²")
    axes.set_title("What each token adds to those before it")
    axes.legend(fontsize=9)


def _ahead(axes: Axes, summary: Mapping[str, Any]) -> None:
    for index, name in enumerate(summary["order"]):
        ahead = summary["order"][name]["ahead"]
        # Not the intervals over items: seeds differ by more than items let one expect.
        figures = [figure["mean"] for figure in ahead.values()]
        axes.errorbar(
            np.arange(1, len(ahead) + 1) + 0.06 * (index - (len(summary["order"]) - 1) / 2),
            [figure["mean"] for figure in figures],
            [figure["deviation"] for figure in figures],
            fmt="o",
            capsize=3,
            label=summary["labels"][name],
        )
    axes.axhline(0, color="gray", linewidth=1, label="registers shuffled")
    axes.set_xticks(range(1, len(ahead) + 1))
    axes.set_xlabel("k")
    axes.set_ylabel("difference of R²")
    axes.set_title("How far tokens 1..k are ahead of any k tokens")
    axes.legend(fontsize=9)
