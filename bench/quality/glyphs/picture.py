"""The glyphs benchmark as a picture: Recall@10 by k for every head, and how readable the type face is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np

from bench.quality.glyphs.probe import FACTORS
from bench.quality.glyphs.retrieval import HITS_AT
from bench.quality.glyphs.variants import MAIN
from fluxtalk.artifacts.files import atomic_file

_LINES = (
    (MAIN, "#1f5aa6", "o-"),
    ("matryoshka", "#8a5a00", "s--"),
    ("query_former", "#2c8a4b", "D--"),
    ("attention_pool", "#7b3fa0", "^:"),
    ("mean_pool_mlp", "#c2571a", "v:"),
    ("mean_pool_linear", "0.45", "x:"),
)
_BARS = (
    ("raw", MAIN, "raw features", "0.25"),
    ("untrained", MAIN, "untrained register", "0.7"),
    ("complementary", MAIN, "complementary token", "#c2571a"),
    ("shared", MAIN, "shared embedding", "#1f5aa6"),
    ("shared", "mean_pool_linear", "mean-pool + linear", "#8fb4de"),
)


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Draw the picture from a results file's content."""
    directions = list(summary["recall"][MAIN])
    figure, axes = plt.subplots(
        1, len(directions) + 1, figsize=(4.1 * len(directions) + 5.6, 4.6), dpi=110, layout="constrained",
        width_ratios=[1.0] * len(directions) + [1.35],
    )  # fmt: skip
    for axis, direction in zip(axes, directions, strict=False):
        _draw_recall(axis, summary, direction)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, frameon=False, fontsize=9)
    _draw_probes(axes[-1], summary)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)


def _draw_recall(axis: Any, summary: Mapping[str, Any], direction: str) -> None:
    whole = [int(k) for k in summary["recall"][MAIN][direction]]
    for position, (name, color, style) in enumerate(_LINES):
        by_k = summary["recall"][name][direction]
        # Side by side, so that error bars do not hide each other.
        counts = np.array([int(k) for k in by_k]) + 0.03 * (position - 2.5)
        figures = [by_cutoff[str(HITS_AT)] for by_cutoff in by_k.values()]
        means = [100 * figure["mean"] for figure in figures]
        spread = [100 * figure["deviation"] for figure in figures]
        note = " (k times the bytes)" if name == "matryoshka" else ""
        label = summary["labels"][name] + note
        axis.errorbar(counts, means, spread, fmt=style, color=color, capsize=3, ms=5, lw=1.4, label=label)
        if len(means) == 1:
            axis.plot([counts[0], whole[-1] + 0.1], [means[0]] * 2, ":", color=color, lw=1)
    separate = [summary["recall"][f"separate_{k}"][direction][str(k)][str(HITS_AT)] for k in whole]
    axis.errorbar(
        np.array(whole) + 0.11,
        [100 * figure["mean"] for figure in separate],
        [100 * figure["deviation"] for figure in separate],
        fmt="*", color="#b3123f", capsize=3, ms=9, label="a separate model for each k",
    )  # fmt: skip
    axis.set(
        title=direction.replace("->", " to "), xlabel="k, tokens used", ylabel="Recall@10 (%)", xticks=whole,
        xlim=(whole[0] - 0.25, whole[-1] + 0.3),
    )  # fmt: skip
    axis.grid(axis="y", color="0.9")


def _draw_probes(axis: Any, summary: Mapping[str, Any]) -> None:
    bars = [(v, n, label, color) for v, n, label, color in _BARS if v in summary["probe"][n]]
    width = 0.8 / len(bars)
    places = np.arange(len(FACTORS))
    for position, (vector, name, label, color) in enumerate(bars):
        figures = [summary["probe"][name][vector][factor] for factor in FACTORS]
        axis.bar(
            places + (position - (len(bars) - 1) / 2) * width,
            [100 * figure["mean"] for figure in figures],
            0.92 * width,
            yerr=[100 * figure["deviation"] for figure in figures],
            color=color, label=label, error_kw={"capsize": 2, "lw": 1},
        )  # fmt: skip
    for place, factor in zip(places, FACTORS, strict=True):
        chance = 100 * summary["probe"][MAIN]["majority"][factor]["mean"]
        axis.plot([place - 0.42, place + 0.42], [chance] * 2, color="black", lw=1.2, ls=(0, (2, 2)))
    axis.plot([], [], color="black", lw=1.2, ls=(0, (2, 2)), label="commonest class")
    axis.set(title="type face, read by a linear probe", ylabel="accuracy (%)", xticks=places, ylim=(0, 118))
    axis.set_xticklabels(FACTORS)
    axis.set_yticks(range(0, 101, 20))
    axis.legend(loc="upper left", ncols=2, frameon=False, fontsize=8)
    axis.grid(axis="y", color="0.9")
    axis.set_axisbelow(True)
