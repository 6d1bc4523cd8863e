"""Recall against bytes, one panel for each kind of query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.quality.retrieval.summary import DIRECTION
from bench.quality.retrieval.tables import KIND_TITLES
from fluxtalk.artifacts.files import atomic_file

CUTOFF = "10"
_STYLES = {
    "concat": ("#1f5aa6", "o-"),
    "concat-own": ("#1f5aa6", "o:"),
    "maxsim": ("#b3123f", "D-"),
    "regions": ("#d4a000", "D-"),
    "matryoshka": ("#3f8f4f", "s--"),
    "linear": ("0.55", "x:"),
    "mlp": ("#c2571a", "v:"),
    "attention-pool": ("#8a5fb0", "^:"),
    "separate": ("#5aa0d8", "*"),
    "query-former": ("#a08030", "P"),
    "many-vectors": ("black", "h"),
}
"""Beginning of a head's name to color and line; sizes of one kind of head share a line."""


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Draw the picture of one task from its summary."""
    kinds = list(next(iter(summary["recall"].values())))
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(4.4 * len(kinds) + 1.6, 4.6), dpi=110, layout="constrained", squeeze=False
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        _panel(axis, summary, kind)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(
        f"{summary['label']}: test split, {summary['seeds']} seed{'s' * (summary['seeds'] > 1)}", fontsize=11
    )
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)


def _panel(axis: Any, summary: Mapping[str, Any], kind: str) -> None:
    for prefix, (color, style) in _STYLES.items():
        points = sorted(
            (
                (size, by_kind[kind][DIRECTION][k][CUTOFF])
                for name, by_kind in summary["recall"].items()
                if name == prefix or (name.startswith(f"{prefix}-") and name not in _STYLES)
                for k, size in summary["bytes"][name].items()
            ),
            key=lambda point: point[0],
        )
        if not points:
            continue
        means = [100 * figure["mean"] for _, figure in points]
        spread = [100 * figure["deviation"] for _, figure in points]
        label = next(
            summary["heads"][name]["label"]
            for name in summary["heads"]
            if name == prefix or name.startswith(f"{prefix}-")
        )
        if prefix not in summary["heads"]:
            label = "a model for each k" if prefix == "separate" else label.rsplit(",", 1)[0]
        axis.errorbar(
            [size for size, _ in points], means, spread, fmt=style, color=color, capsize=2, ms=5, lw=1.4, label=label
        )
    axis.set_xscale("log", base=2)
    title = f"query {KIND_TITLES[kind]}" if len(next(iter(summary["recall"].values()))) > 1 else "text to image"
    axis.set(title=title, xlabel="bytes of an item (float32)", ylabel=f"Recall@{CUTOFF} (%)")
    axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axis.grid(axis="y", color="0.9")
