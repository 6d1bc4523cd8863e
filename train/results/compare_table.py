"""A comparison as text: one column per run, and only what tells them apart above what they reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxtalk.train.records.history import RunHistory, score_of
from fluxtalk.train.results.compare import NOT_STATED, Comparison

_GAP = "  "


def table_lines(comparison: Comparison) -> list[str]:
    """Format the options that differ, each run's size and time, its recall by direction and k, and the notes."""
    runs = comparison.runs
    rows: list[tuple[str, Sequence[str]]] = [
        ("", comparison.names),
        ("group", [str(group) for group in comparison.groups]),
        ("options that differ", []),
        *(
            (f"  {name}", [_value(run.options.get(name, NOT_STATED)) for run in runs])
            for name in comparison.differing or ("(none)",)
        ),
        ("runs", []),
        ("  implementation", [run.implementation for run in runs]),
        ("  experiment_id", [run.experiment_id for run in runs]),
        ("  parameters", [NOT_STATED if run.parameters is None else f"{run.parameters:,}" for run in runs]),
        ("  time (s)", [NOT_STATED if run.seconds is None else f"{run.seconds:,.1f}" for run in runs]),
        ("  steps", [f"{run.steps:,}" for run in runs]),
        ("  best validation score (%)", [_best(run) for run in runs]),
        ("  recall below is of", [_scored_on(run) for run in runs]),
    ]
    for direction in comparison.directions():
        rows += _recall_rows(direction, runs)
    grouped = f"group: equal {', '.join(comparison.align_by)}"
    return [*_columns(rows), "", grouped, *(f"note: {note}" for note in comparison.notes)]


def _recall_rows(direction: str, runs: Sequence[RunHistory]) -> list[tuple[str, Sequence[str]]]:
    recalls = [run.scored.get("recall", {}).get(direction, {}) if run.scored else {} for run in runs]
    ks = sorted({int(k) for recall in recalls for k in recall})
    cutoffs = sorted({int(c) for recall in recalls for by_cutoff in recall.values() for c in by_cutoff})
    title = f"{direction}, recall@{'/'.join(map(str, cutoffs))} (%)"
    return [(title, []), *((f"  k={k}", [_cell(recall.get(str(k), {}), cutoffs) for recall in recalls]) for k in ks)]


def _cell(by_cutoff: dict[str, float], cutoffs: Sequence[int]) -> str:
    if not by_cutoff:
        return NOT_STATED
    return " / ".join(f"{100 * by_cutoff[str(c)]:.1f}" if str(c) in by_cutoff else NOT_STATED for c in cutoffs)


def _best(run: RunHistory) -> str:
    best = run.best_validation
    return NOT_STATED if best is None else f"{100 * (score_of(best) or 0.0):.2f} (step {best['step']:,})"


def _scored_on(run: RunHistory) -> str:
    if run.scored is None or run.scored_on is None:
        return NOT_STATED
    return "test" if run.scored_on == "test" else f"validation, step {run.scored['step']:,}"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _columns(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Align rows; one without cells is a heading, which does not widen the first column."""
    first = max(len(title) for title, cells in rows if cells)
    count = max(len(cells) for _, cells in rows)
    widths = [max(len(cells[column]) for _, cells in rows if cells) for column in range(count)]
    lines = []
    for title, cells in rows:
        if not cells:
            lines += ["", title]
            continue
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append(_GAP.join([title.ljust(first), *padded]).rstrip())
    return lines
