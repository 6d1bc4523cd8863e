"""Ids for a table without an ``id`` column: rows that share a cell get one id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

Cells = Sequence[str | None]

_MANY_ROWS, _MANY_SHARE = 10, 0.03
"""A value in more rows than both of these probably links unrelated rows: a photograph has five captions, not 100."""


def linked_row_ids(columns: Mapping[str, Cells], rows: int) -> list[str]:
    """Give one id to all rows that share a cell, directly or through other rows (union-find)."""
    parent = list(range(rows))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for modality, cells in columns.items():
        for i, cell in enumerate(cells):
            if cell is not None:
                a, b = root(first.setdefault((modality, cell), i)), root(i)
                parent[max(a, b)] = min(a, b)
    return [str(root(i)) for i in range(rows)]


def linkage_notes(columns: Mapping[str, Cells], rows: int) -> tuple[str, ...]:
    """Make a sentence for each column in which a value links more than 3 % of the rows, and at least ten."""
    notes = []
    for modality, cells in columns.items():
        counts = Counter(cell for cell in cells if cell is not None)
        value, most = counts.most_common(1)[0] if counts else ("", 0)
        if most >= _MANY_ROWS and most > _MANY_SHARE * rows:
            shown = value if len(value) <= 40 else f"{value[:40]}..."
            notes.append(
                f"{most} of {rows} rows have the {modality} {shown!r}, and are one id for that reason; "
                "if they do not belong together, give the table an id column"
            )
    return tuple(notes)
