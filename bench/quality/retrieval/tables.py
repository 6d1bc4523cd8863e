"""Figures of one task as Markdown, for a terminal and for the docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.markdown import markdown_table
from bench.quality.report import percent
from bench.quality.retrieval.summary import DIRECTION

KIND_TITLES = {"all": "names all", "some": "names some", "one": "names one thing"}


def tables(summary: Mapping[str, Any]) -> str:
    """Write recall by head, size and kind of query, and the differences from heads of the same size."""
    return "\n\n".join((recall_table(summary), difference_table(summary)))


def recall_table(summary: Mapping[str, Any]) -> str:
    """Write R@1 and R@10 from text to image, in percent, mean and deviation over the seeds."""
    kinds = list(next(iter(summary["recall"].values())))
    several = len(kinds) > 1
    head = [
        f"{title} R@{cutoff}" if several else f"R@{cutoff}"
        for kind in kinds
        for title in (KIND_TITLES[kind],)
        for cutoff in (1, 10)
    ]
    rows = []
    for name, by_kind in summary["recall"].items():
        for k, size in summary["bytes"][name].items():
            cells = [percent(by_kind[kind][DIRECTION][k][str(cutoff)]) for kind in kinds for cutoff in (1, 10)]
            tokens = f", k = {k}" if len(summary["bytes"][name]) > 1 else ""
            rows.append([f"{summary['heads'][name]['label']}{tokens}", f"{size:,}", *cells])
    return markdown_table(["head", "bytes", *head], rows)


def difference_table(summary: Mapping[str, Any]) -> str:
    """Write the differences in R@10, in points, with their 95 % intervals; a star marks one that may be below -1."""
    rows = [
        [
            summary["heads"][row["ours"]]["label"],
            summary["heads"][row["other"]]["label"],
            f"{row['bytes']:,}",
            KIND_TITLES[row["kind"]],
            f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
            + ("" if row["not_below"] else " *"),
        ]
        for row in summary["differences"]
    ]
    return markdown_table(["ours", "less", "bytes", "query", "R@10 difference"], rows)
