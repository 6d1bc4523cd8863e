"""What Windows lacks is taken away from a fresh interpreter: every module still loads, and a bundle is used.

This is as near to Windows as Linux comes; docs/platforms.md says what was never run there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fluxtalk.errors import BackendError
from fluxtalk.runtime.server.media.worker_pool import WorkerPool
from fluxtalk.runtime.server.metrics import Metrics
from tests.conftest import Made

AS_ON_WINDOWS = """
import os, select, signal, socket, stat, sys

for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog", "readline"):
    sys.modules[name] = None
for name in (
    "fork", "forkpty", "getuid", "geteuid", "getgid", "setsid", "killpg", "sched_getaffinity", "getloadavg", "mkfifo",
    "statvfs", "sysconf", "O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW", "posix_fadvise", "pread", "fchmod", "chown",
):
    if hasattr(os, name):
        delattr(os, name)
kept = ("SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM")
for name in [name for name in dir(signal) if name.startswith("SIG") and name[3] != "_" and name not in kept]:
    delattr(signal, name)
for module, name in ((socket, "AF_UNIX"), (select, "poll"), (select, "epoll")):
    delattr(module, name)
system_open = os.open

def open_files_only(path, *arguments, **named):
    if not isinstance(path, int) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return system_open(path, *arguments, **named)

os.open = open_files_only
"""


def told(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return done.stdout


def test_every_module_loads_and_a_bundle_is_used(made: Made, tmp_path: Path) -> None:
    """Modules that load another's library as they load (integrations, Ray Serve) are left out: it is theirs to load."""
    code = f"""
import subprocess, tempfile, torch, onnxruntime, usearch.index  # the system's part and others' code load as ever
{AS_ON_WINDOWS}
import importlib, pkgutil
from pathlib import Path
import fluxtalk
names = [module.name for module in pkgutil.walk_packages(fluxtalk.__path__, "fluxtalk.")]
left_out = ("fluxtalk.integrations.", "fluxtalk.runtime.ray_serve")
loaded = [name for name in names if not name.startswith(left_out) and not name.endswith("__main__")]
for name in loaded:
    importlib.import_module(name)
assert len(loaded) > 300, len(loaded)

from click.testing import CliRunner
from fluxtalk.cli import main
for command in (
    ["export", "verify", {str(made.bundle.folder)!r}],
    ["embed", {str(made.bundle.folder)!r}, "text", "omega", "-o", {str(tmp_path / "v.npy")!r}],
    ["index", "build", {str(made.bundle.folder)!r}, "text", "omega", "queen", "-o", {str(tmp_path / "t.index")!r}],
    ["index", "search", {str(tmp_path / "t.index")!r}, "text", "omega"],
):
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
print(done.output)
"""
    assert "omega" in told(code).splitlines()[0]


def test_serving_pictures_says_that_windows_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkerPool(2, Metrics())
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(BackendError, match=r"^Pictures and sounds are decoded in processes .* --modality text"):
        pool.start()
