"""The documentation: every command on it exists, errors are quoted as they are written, the site builds, and the
notebook runs."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fluxtalk.cli import main
from fluxtalk.export.cli import main as export_main
from fluxtalk.train.cli import main as train_main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {"fluxtalk": main, "fluxtalk-train": train_main, "fluxtalk-export": export_main}
NOT_PARSED = {
    "apt-get": "Debian's",
    "cat": "shows a file",
    "cd": "the shell's",
    "curl": "bodies are tested in tests/runtime/server/api",
    "git": "git's",
    "tensorboard": "TensorBoard's",
}
"""Commands that are not ours, and why nothing is checked of them."""


def lines() -> Iterator[tuple[str, list[str]]]:
    """Yield page and words of every line of every ``sh`` block, without variables that are set before a command."""
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    yield page.name, words


def problem(words: list[str]) -> str | None:
    """Tell what is wrong with a command line; None if nothing is."""
    name, arguments = words[0], [word for word in words[1:] if word != "..."]
    if name in COMMANDS:
        return problem_of(COMMANDS[name], arguments)
    if name == "torchrun":
        return problem_of(train_main, arguments[arguments.index("fluxtalk.train") + 1 :])
    if name in ("python", "python3") and arguments[:1] == ["-m"]:
        return None if importlib.util.find_spec(arguments[1]) else f"there is no module {arguments[1]}"
    if name == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
        return next((f"no target {word}" for word in arguments if "=" not in word and word not in targets), None)
    if name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = [e for word in arguments for e in re.findall(r"\[(.*)\]", word) if word.startswith("fluxtalk")]
        return next((f"no extra {e}" for each in asked for e in each.split(",") if e not in extras), None)
    return None if name in NOT_PARSED else f"{name} is neither ours nor in NOT_PARSED"


def problem_of(command: click.Command, arguments: list[str]) -> str | None:
    """Parse a command line as click does; values that name files are not looked for."""
    with click.Context(command, info_name="fluxtalk") as context:
        if isinstance(command, click.Group):
            chosen = command.get_command(context, arguments[0])
            return f"no command {arguments[0]}" if chosen is None else problem_of(chosen, arguments[1:])
        try:
            values, _, _ = command.make_parser(context).parse_args(list(arguments))
            for parameter in command.params:
                value = values.get(str(parameter.name))
                if isinstance(value, str | list | tuple) and not isinstance(parameter.type, click.Path):
                    parameter.type_cast_value(context, value)
        except click.UsageError as error:
            return error.format_message()
    return None


def test_every_command_on_every_page_exists_with_its_options() -> None:
    found = list(lines())
    assert len(found) > 60
    assert {(page, shlex.join(words), why) for page, words in found if (why := problem(words)) is not None} == set()


def test_what_does_not_exist_is_found() -> None:
    for words, why in (
        ("fluxtalk serve bundle --prot 80", "No such option"),
        ("fluxtalk srve bundle", "no command srve"),
        ("fluxtalk embed bundle text a --dtype float23", "is not one of"),
        ("fluxtalk-train --epochs many", "not a valid integer"),
        ("make coffee", "no target coffee"),
        ("pip install 'fluxtalk[cpu,moon]'", "no extra moon"),
        ("python -m bench.moon", "no module"),
        ("rm -rf bundle", "neither ours"),
    ):
        assert why in str(problem(shlex.split(words))), words


def test_errors_are_quoted_as_they_are_written() -> None:
    """Quotations of the FAQ: what is in backticks with a space in it and is no command line."""
    quoted = [
        part
        for part in re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "faq.md").read_text())
        if " " in part and not part.startswith(("pip ", "--", "fluxtalk "))
    ]
    assert len(quoted) >= 17
    sentences = "\n".join(sentence for room in ("fluxtalk", "train", "export", "runtime") for sentence in _texts(room))
    assert [part for part in quoted if part not in sentences] == []
    assert len(re.findall(r"^### \d+\.", (ROOT / "docs" / "faq.md").read_text(), re.M)) == 20


def _texts(room: str) -> Iterator[str]:
    """Yield every string of a room's modules, with {} for what is put into it."""
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_site_builds_with_every_page_in_its_navigation(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs fluxtalk[docs]")
    pytest.importorskip("mkdocstrings", reason="the site needs fluxtalk[docs]")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert 'not included in the "nav"' not in built.stderr
    reference = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("fluxtalk.runtime.embedder.load", "fluxtalk.model.head.registers.RegisterTokenModule"):
        assert f'id="{name}"' in reference
    assert not re.findall(
        r'(?:src|href)="https?://(?!(?:www\.)?(?:squidfunk|mkdocs|zensical))[^"]*\.(?:js|css)', reference
    )


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="notebooks need fluxtalk[docs]")
    nbclient = pytest.importorskip("nbclient", reason="notebooks need fluxtalk[docs]")
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    told = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    found = [int(share) for share in re.findall(r"k=\d: (\d+)% of 100 found first", told)]
    assert len(found) == 3
    assert min(found) >= 50, told
    assert (tmp_path / "mine" / "README.md").is_file()
