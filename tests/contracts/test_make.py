"""`make test` runs every part, shows what each says, and fails if one of them does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    "train": "tests/train --ignore=tests/train/stage1",
    "stage1": "tests/train/stage1",
    "runtime": "tests/runtime --ignore=tests/runtime/backends --ignore=tests/runtime/doctor",
    "export": "tests/export tests/runtime/backends tests/runtime/doctor",
    "others": "--ignore=tests/export --ignore=tests/runtime --ignore=tests/train",
    "alone": "alone and not slow",
}
"""Each part, and what only its command line holds."""


def installed(folder: Path) -> Path:
    """Copy what `make test` reads to where all is installed, and name a program to stand in for pytest."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").mkdir()
    for name in (".demo-installed", ".installed"):
        (folder / ".venv" / name).touch()
    return folder / "tester"


@pytest.mark.parametrize("failing", [None, *PARTS])
def test_make_test_fails_if_a_part_fails(tmp_path: Path, failing: str | None) -> None:
    tester = installed(tmp_path)
    tester.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '  *"--ignore=tests/export"*) part=others ;;\n'
        '  *"not alone"*tests/export*) part=export ;;\n'
        '  *"not alone tests/train/stage1"*) part=stage1 ;;\n'
        '  *"not alone"*tests/train*) part=train ;;\n'
        '  *"not alone"*--ignore=tests/runtime/backends*) part=runtime ;;\n'
        "  *) part=alone ;;\n"
        "esac\n"
        'echo "the summary of $part: $*"\n'
        f'test $part != "{failing}"\n'
    )
    tester.chmod(0o755)
    done = subprocess.run(["make", "test", f"PYTEST={tester}"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) == (failing is None), done.stdout + done.stderr
    said = {line.split(":")[0].split()[-1]: line for line in done.stdout.splitlines() if line.startswith("the summary")}
    assert set(said) == set(PARTS)
    assert list(said)[-1] == "alone"  # when nothing else runs
    for part, words in PARTS.items():
        assert words in said[part]


def test_what_is_marked_alone_is_where_make_test_looks_for_it() -> None:
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "@pytest.mark.alone" in path.read_text()]
    assert marked
    assert {path.relative_to(ROOT).parts[1] for path in marked if path != Path(__file__)} == {"runtime"}


def test_an_interrupted_make_test_leaves_no_part_running(tmp_path: Path) -> None:
    tester = installed(tmp_path)
    tester.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/started\nexec sleep 300\n")
    tester.chmod(0o755)
    # A shell starts its background jobs with SIGINT ignored, and `make test` runs this file in one.
    interruptible = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp('make', sys.argv[1:])"
    )
    command = [sys.executable, "-c", interruptible, "make", "test", f"PYTEST={tester}", "LANES=2"]
    running = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    started = tmp_path / "started"
    _wait_for(lambda: started.exists() and len(started.read_text().split()) == 2)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(60) != 0
    _wait_for(lambda: not any(_runs(int(pid)) for pid in started.read_text().split()))
    assert len(started.read_text().split()) == 2


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
