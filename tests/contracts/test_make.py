"""`make test` runs every part, shows what each says, and fails if one of them does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    "train": "tests/train",
    "runtime": "tests/runtime",
    "export": "tests/export",
    "others": "--ignore=tests/export --ignore=tests/runtime --ignore=tests/train",
    "alone": "alone and not slow",
}
"""Each part, and what only its command line holds."""


@pytest.mark.parametrize("failing", [None, *PARTS])
def test_make_test_fails_if_a_part_fails(tmp_path: Path, failing: str | None) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    for name in (".demo-installed", ".installed"):
        (tmp_path / ".venv" / name).touch()
    tester = tmp_path / "tester"
    tester.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '  *"--ignore=tests/export"*) part=others ;;\n'
        '  *"not alone"*tests/train*) part=train ;;\n'
        '  *"not alone"*tests/runtime*) part=runtime ;;\n'
        '  *"not alone"*tests/export*) part=export ;;\n'
        "  *) part=alone ;;\n"
        "esac\n"
        'echo "the summary of $part: $*"\n'
        f'test $part != "{failing}"\n'
    )
    tester.chmod(0o755)
    done = subprocess.run(["make", "test", f"PYTEST={tester}"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (failing is None), done.stdout + done.stderr
    said = {line.split(":")[0].split()[-1]: line for line in done.stdout.splitlines() if line.startswith("the summary")}
    assert list(said) == list(PARTS)
    for part, words in PARTS.items():
        assert words in said[part]
