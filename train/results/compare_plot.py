"""A comparison as a picture: recall@10 by k in every direction, training loss, validation score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.files import atomic_file
from fluxtalk.errors import BackendError, DataError, UsageError
from fluxtalk.train.records.history import RunHistory, score_of
from fluxtalk.train.results.compare import Comparison

FORMATS = ("png", "svg", "pdf")
_CUTOFF = "10"
_COLUMNS = 3
_MARKERS = "osD^vPX*"


def draw(comparison: Comparison, path: Path) -> None:
    """Write the picture, atomically.

    Args:
        path: ends in one of `FORMATS`.

    Raises:
        UsageError: the path ends otherwise.
        BackendError: matplotlib is not installed.
        DataError: no run has anything to draw.
    """
    file_format = path.suffix.lstrip(".").lower()
    if file_format not in FORMATS:
        raise UsageError(f"A plot ends in {', '.join('.' + name for name in FORMATS)}; got {path}.")
    figure_class = _figure_class()
    panels = list(_panels(comparison))
    if not panels:
        raise DataError("There is nothing to draw: no run has recall@10, a training loss or a validation score yet.")
    columns = 2 if len(panels) == 4 else min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    # No pyplot: it would choose a backend for the whole program.
    figure = figure_class(figsize=(5 * columns, 3.8 * rows + 0.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        panel.draw(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    _legend(figure, comparison)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=file_format, dpi=150)


class _Panel:
    """One subplot: a title, named axes, and one curve per run that has values for it."""

    def __init__(self, title: str, x: str, y: str, curves: Mapping[int, Sequence[tuple[float, float]]]) -> None:
        self.title, self.x, self.y = title, x, y
        self.curves = {index: points for index, points in curves.items() if points}

    def draw(self, axis: Any) -> None:
        """Draw into matplotlib axes."""
        for index, points in self.curves.items():
            xs, ys = zip(*points, strict=True)
            marker = _MARKERS[index % len(_MARKERS)] if len(points) <= 20 else None
            axis.plot(xs, ys, color=_color(index), linestyle=_style(index), marker=marker, markersize=5)
        axis.set(title=self.title, xlabel=self.x, ylabel=self.y)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)


def _panels(comparison: Comparison) -> Iterator[_Panel]:
    """Yield the panels that have at least one curve."""
    runs = dict(enumerate(comparison.runs))
    for direction in comparison.directions():
        curves = {index: _recall_points(run, direction) for index, run in runs.items()}
        drawn = [comparison.runs[index] for index, points in curves.items() if points]
        title = f"{direction.replace('->', ' → ')}: recall@{_CUTOFF}{_chance(drawn, direction)}"
        panel = _Panel(title, "register tokens k", f"recall@{_CUTOFF} (%)", curves)
        if panel.curves:
            yield panel
    loss = {i: [(r["step"], r["total"]) for r in run.train if r.get("total") is not None] for i, run in runs.items()}
    score = {
        i: [(r["step"], 100 * s) for r in run.validation if (s := score_of(r)) is not None] for i, run in runs.items()
    }
    for panel in (
        _Panel("Training loss", "optimizer step", "total loss", loss),
        _Panel("Validation score: mean of all recalls", "optimizer step", "score (%)", score),
    ):
        if panel.curves:
            yield panel


def _recall_points(run: RunHistory, direction: str) -> list[tuple[float, float]]:
    recall = run.scored.get("recall", {}).get(direction, {}) if run.scored else {}
    points = [(int(k), 100 * by_cutoff[_CUTOFF]) for k, by_cutoff in recall.items() if _CUTOFF in by_cutoff]
    return sorted(points)


def _chance(runs: Sequence[RunHistory], direction: str) -> str:
    """Format the recall of a random order, if all runs state the same; a drawn line would flatten the curves."""
    chances = {run.scored.get("chance", {}).get(direction, {}).get(_CUTOFF) for run in runs if run.scored}
    if len(chances) != 1 or chances == {None}:
        return ""
    return f" (chance {100 * chances.pop():.1f} %)"


def _legend(figure: Any, comparison: Comparison) -> None:
    """Every run once, under the panels, with its group and the split that its recall is of."""
    from matplotlib.lines import Line2D

    handles, labels = [], []
    for index, (name, group, run) in enumerate(zip(comparison.names, comparison.groups, comparison.runs, strict=True)):
        marker = _MARKERS[index % len(_MARKERS)]
        handles.append(Line2D([], [], color=_color(index), linestyle=_style(index), marker=marker, markersize=5))
        # A dollar sign would begin a formula.
        label = f"[{group}] {name}: {run.implementation}, {run.scored_on or 'not scored'}"
        labels.append(label.replace("$", r"\$"))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2 if len(labels) > 3 else 1, fontsize=9,
        title="[group] run: implementation, split of its recall",
    )  # fmt: skip


def _color(index: int) -> str:
    return f"C{index % 10}"


def _style(index: int) -> str:
    return ("-", "--", "-.", ":")[index // 10 % 4]


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise BackendError("A plot needs matplotlib: pip install matplotlib, or leave -o out.") from None
    return Figure
