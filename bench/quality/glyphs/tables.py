"""The glyphs benchmark's figures as Markdown, for a terminal and for the docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.markdown import markdown_table
from bench.quality.glyphs.probe import FACTORS
from bench.quality.glyphs.variants import MAIN
from bench.quality.report import percent


def tables(summary: Mapping[str, Any]) -> str:
    """All tables: recall per direction, nested against separate, type-face probes, goals."""
    parts = [_recall(summary, direction) for direction in summary["recall"][MAIN]]
    parts += [_nested(summary), _probes(summary), _goals(summary)]
    return "\n\n".join(parts)


def _recall(summary: Mapping[str, Any], direction: str) -> str:
    rows = [
        (
            summary["labels"][name],
            k,
            summary["bytes"][name][k],
            *(percent(figure) for figure in by_cutoff.values()),
        )
        for name, by_direction in summary["recall"].items()
        for k, by_cutoff in by_direction[direction].items()
    ]
    return markdown_table((direction.replace("->", " to "), "k", "bytes", "R@1", "R@5", "R@10"), rows)


def _nested(summary: Mapping[str, Any]) -> str:
    rows = [
        (
            direction.replace("->", " to "),
            k,
            f"{100 * row['difference']:+.1f}",
            f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
        )
        for direction, by_k in summary["nested_minus_separate"].items()
        for k, row in by_k.items()
    ]
    return markdown_table(("R@10, nested less separate (points)", "k", "difference", "95 % interval"), rows)


def _probes(summary: Mapping[str, Any]) -> str:
    rows = [
        (summary["labels"][name], vector, *(percent(by_factor[factor]) for factor in FACTORS))
        for name, by_vector in summary["probe"].items()
        for vector, by_factor in by_vector.items()
    ]
    return markdown_table(("type face read from", "vector", *FACTORS), rows)


def _goals(summary: Mapping[str, Any]) -> str:
    rows = [
        (goal["goal"], "met" if goal["met"] else f"missed in {len(goal['missed'])} of {goal['of']}")
        for goal in summary["goals"]
    ]
    missed = [f"- missed: {name}" for goal in summary["goals"] for name in goal["missed"]]
    return "\n".join([markdown_table(("goal", "result"), rows), *missed])
