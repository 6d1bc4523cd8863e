"""Tables in Markdown, and the place in a document that they are written to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fluxtalk.artifacts.files import write_atomically


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; the first column is text, the others are aligned to the right."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_between(path: Path, begin: str, end: str, paragraphs: Iterable[str]) -> None:
    """Replace the text between two marks of a Markdown file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    write_atomically(path, "\n\n".join([before + begin, *paragraphs, end + after]))
