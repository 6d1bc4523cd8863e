"""Environments of the contenders: made once, with pinned versions, which are written down as installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.compare.contenders import ENVIRONMENTS, OURS, PACKAGES
from fluxtalk.errors import UsageError

_VERSIONS = (
    "import json, sys; from importlib import metadata as m;"
    "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions() if d.metadata['Name']}))"
)


def python_of(environment: str, root: Path) -> Path:
    """Name the interpreter of an environment.

    Raises:
        UsageError: the environment was not installed.
    """
    if environment == OURS:
        return Path(sys.executable)
    python = root / environment / "bin" / "python"
    if not python.exists():
        raise UsageError(f"{root} has no environment {environment!r}; make bench-compare-install makes it.")
    return python


def install(root: Path, names: Sequence[str] = (), index: str | None = None) -> dict[str, str]:
    """Make the environments that are not there yet.

    Args:
        names: environments; none for all.
        index: URL that pip takes torch from.

    Returns:
        Environment to what pip said last, for those that could not be installed.
    """
    failed = {}
    for name in names or ENVIRONMENTS:
        python, done = root / name / "bin" / "python", root / name / ".installed"
        wanted = json.dumps(list(ENVIRONMENTS[name]))
        if done.exists() and done.read_text() == wanted:
            continue
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(root / name)], check=True)
        torch = [one for one in ENVIRONMENTS[name] if one.startswith("torch==")]
        commands = [["--upgrade", "pip>=25"], *([["--index-url", index, *torch]] if index and torch else [])]
        for words in [*commands, list(ENVIRONMENTS[name])]:
            ran = subprocess.run([python, "-m", "pip", "install", "-q", *words], capture_output=True, text=True)
            if ran.returncode:
                failed[name] = (ran.stderr.strip().splitlines() or ["pip said nothing"])[-1]
                break
        else:
            done.write_text(wanted)
    return failed


def installed(root: Path) -> list[str]:
    """List the environments that are there, ours first."""
    return [OURS, *(name for name in ENVIRONMENTS if (root / name / "bin" / "python").exists())]


def versions(environment: str, root: Path) -> dict[str, str]:
    """List the versions of what matters to speed, as installed in an environment."""
    ran = subprocess.run([python_of(environment, root), "-c", _VERSIONS], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    return {name: found[name] for name in PACKAGES if name in found}
