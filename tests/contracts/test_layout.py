"""Rooms stay small, and the documents name files that exist."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_FILES = 14
"""Python files of a folder, besides `__init__.py`."""
MAX_LINES = 400
TOP = ("fluxtalk", "train", "export", "runtime", "bench", "tests", "docs")
HISTORY = {"LOG.md"}
"""Documents that keep the names of their day."""
ABSENT = {
    "register_tokens.py", "loss.py", "train.py",  # the specification's names, beside ours
    "bench/results/gpu.json",  # written by `make gpu`
}  # fmt: skip


def files_of_the_repository() -> list[Path]:
    """Files of the top folders, relative to the root; the links to rooms are not followed twice."""
    found = [path for top in TOP for path in (ROOT / top).rglob("*") if path.is_file()]
    own = [path for path in found if not any(part.is_symlink() for part in path.parents)]
    assert len(own) > 400
    return [path.relative_to(ROOT) for path in own if "__pycache__" not in path.parts]


def test_no_folder_has_too_many_files() -> None:
    files = [path for path in files_of_the_repository() if path.suffix == ".py" and path.name != "__init__.py"]
    crowded = {str(folder): count for folder, count in Counter(p.parent for p in files).items() if count > MAX_FILES}
    assert crowded == {}


def test_no_file_is_too_long() -> None:
    files = [path for path in files_of_the_repository() if path.suffix == ".py"]
    lines = {str(path): (ROOT / path).read_text(encoding="utf-8").count("\n") for path in files}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name not in HISTORY], ids=lambda d: d.name)
def test_documents_name_files_that_exist(document: Path) -> None:
    """Check what is in backticks: paths below a top folder, names of Python files, and modules to run."""
    text = document.read_text()
    files = files_of_the_repository()
    names = {path.name for path in files}
    missing = []
    for quoted in re.findall(r"`([^`\n]+)`", text):
        path = quoted.partition("::")[0].rstrip("/")
        if re.fullmatch(rf"(?:{'|'.join(TOP)})/[\w./-]+", path) and not (ROOT / path).exists():
            missing.append(quoted)
        if re.fullmatch(r"\w+\.py", path) and path not in names:
            missing.append(quoted)
    for module in re.findall(r"python3? -m ((?:fluxtalk|bench|tests)[\w.]*)", text):
        folder = ROOT.joinpath(*module.split("."))
        if not folder.with_suffix(".py").exists() and not (folder / "__main__.py").exists():
            missing.append(module)
    assert set(missing) <= ABSENT
