"""Docstrings begin with a noun or a verb, and the spelling is American."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("fluxtalk", "train", "export", "runtime", "bench")
NO_BEGINNING = frozenset(
    [
        "Of",
        "For",
        "Where",
        "What",
        "Whether",
        "How",
        "Which",
        "So",
        "As",
        "Came",
        "To",
        "In",
        "With",
        "That",
        "If",
        "When",
        "By",
        "On",
        "Ours",
        "Theirs",
    ]
)
BRITISH = re.compile(
    r"\w*(?:normalis|quantis|optimis|initialis|serialis|tokenis|regularis|neighbour|behaviour|colour|centre\b|catalogue"
    r"|artefact|back end)\w*",
    re.I,
)
STORED = {"optimiser"}
"""Spellings that files from before hold."""


def sources() -> Iterator[Path]:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            if not any(part.is_symlink() for part in path.parents):
                yield path


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "the module"), text


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    paths = list(sources())
    assert len(paths) > 250
    wrong = [
        f"{path.relative_to(ROOT)}, {name}: {text.splitlines()[0]}"
        for path in paths
        for name, text in docstrings(path)
        if text.split()[0].rstrip(".,:;") in NO_BEGINNING
    ]
    assert wrong == []


def test_the_spelling_is_american() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *sources()]
    wrong = {
        (path.relative_to(ROOT).as_posix(), found)
        for path in documents
        for found in BRITISH.findall(path.read_text(encoding="utf-8"))
        if found not in STORED
    }
    assert wrong == set()
