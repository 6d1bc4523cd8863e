"""What a large batch leaves behind in a process that goes on serving small ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the resident set is read from /proc, which is not here"
)
_GROWTH = """
import importlib, sys
from pathlib import Path
import numpy as np

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

session = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(Path(sys.argv[3]), threads=1)
small, large = ({"pixels": np.zeros((n, 32, 32, 1), np.uint8)} for n in (1, 2048))
session.run(small, 4)
before = resident()
session.run(large, 4)
session.run(small, 4)
print(resident() - before)
"""


def growth(session: type, graph: Path) -> int:
    """Bytes by which the resident set of a fresh process grew over a batch of 2,048 images."""
    command = [sys.executable, "-c", _GROWTH, session.__module__, session.__name__, str(graph)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
