"""A hop is a distinct function of the package, on whichever thread."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from bench.latency.hops import CallRecorder
from tests.conftest import Made

ROOT = Path(__file__).resolve().parents[3]
INNER = "def leaf(x): return x\ndef unused(): pass\n"
OUTER = """
def top(leaf, x):
    return [middle(leaf, value) for value in (x, x)]
def middle(leaf, x):
    return apply(lambda: leaf(x))
def apply(function):
    return function()
"""


@pytest.fixture
def chain() -> tuple[ModuleType, ModuleType]:
    """Two modules of a made-up package: `top` calls `middle` twice, which calls `leaf` through `apply`."""
    inner, outer = ModuleType("made_up.inner"), ModuleType("made_up.outer")
    exec(INNER, inner.__dict__)
    exec(OUTER, outer.__dict__)
    return inner, outer


def test_a_chain_of_calls_is_counted_once_each_on_every_thread(chain: tuple[ModuleType, ModuleType]) -> None:
    inner, outer = chain
    recorder = CallRecorder("made_up")
    before = sys.getprofile()
    recorder.install()
    try:
        inner.unused()  # before the record
        recorder.start()
        thread = threading.Thread(target=outer.top, args=(inner.leaf, 1))
        thread.start()
        thread.join()
        entered = recorder.stop()
        inner.unused()  # after it
    finally:
        recorder.uninstall()
        sys.setprofile(before)
    comprehension = {("made_up.outer", "top.<locals>.<listcomp>")} if sys.version_info < (3, 12) else set()
    expected = {("made_up.inner", "leaf"), *(("made_up.outer", name) for name in ("top", "middle", "apply"))}
    assert entered == expected | comprehension
    assert recorder.stop() == set()


def test_a_request_is_counted_through_the_server(made: Made) -> None:
    command = [sys.executable, "-m", "bench.latency.hops", "--bundle", str(made.bundle.folder), "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *listed, last = done.stdout.splitlines()[1:]
    assert (
        last == f"one text request enters {len(listed)} functions in {len({line.split()[0] for line in listed})} files"
    )
    # From the socket to the session, which runs on a thread of its own.
    for function in ("http.protocol  ", "preprocess.text  ", "backends.onnxruntime_session  OnnxRuntimeSession.run"):
        assert any(function in line for line in listed), function
