"""The wheel, the links and the documents hold together."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("train", "export", "runtime")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_package_list_is_the_tree() -> None:
    own = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "fluxtalk").rglob("__init__.py")}
    linked = {
        f"fluxtalk.{'.'.join(p.parent.relative_to(ROOT).parts)}" for r in ROOMS for p in (ROOT / r).rglob("__init__.py")
    }
    own = {name for name in own if name.split(".")[1:2] not in [[r] for r in ROOMS]}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(own | linked)


@pytest.mark.parametrize("room", ROOMS)
def test_links_are_relative(room: str) -> None:
    assert os.readlink(ROOT / "fluxtalk" / room) == f"../{room}"
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"fluxtalk.{room}"] == room


def test_console_scripts_exist() -> None:
    for target in PROJECT["project"]["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_only_cpu_and_gpu_bring_an_onnxruntime() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    bringing = {name for name, needs in extras.items() if any(n.startswith("onnxruntime") for n in needs)}
    assert bringing == {"cpu", "gpu"}
    assert not any("torch" in need or "onnxruntime" in need for need in PROJECT["project"]["dependencies"])


def test_torch_is_pinned_exactly() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    assert pins == ["torch==2.13.0"]


def test_import_contracts_hold() -> None:
    done = subprocess.run([str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_links_in_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    checked = 0
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} -> {target}"
                checked += 1
    assert checked >= 8


def test_documents_name_targets_and_commands_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(
        re.findall(
            r"(?:^|`)make ([a-z-]+)", "".join((ROOT / n).read_text() for n in ("README.md", "CONTRIBUTING.md")), re.M
        )
    )
    assert {"demo", "test", "lint"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), target
