"""Runs the tests that need a GPU, and tells what they could not do."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.gpu.report import Report

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/runtime/backends/test_gpu_sessions.py", "tests/train/test_cuda.py")
"""Test files that need a GPU; to collect all others would need every package that they import."""


def run_tests(report: Report, least_s: float = 60.0) -> dict[str, Any]:
    """Run the files that are marked `gpu`, for as long as the report's limit leaves, and at least ``least_s``.

    Raises:
        ImportError: pytest is not installed.
        subprocess.TimeoutExpired: they are not done by then.
    """
    if importlib.util.find_spec("pytest") is None:
        raise ImportError("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", *(str(ROOT / file) for file in FILES)]
    if importlib.util.find_spec("pytest_timeout") is None:
        # The project's settings name its options.
        command += ["-c", os.devnull, "--rootdir", str(ROOT)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
        timeout=max(least_s, report.left),
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    summary = lines[-1] if lines else "pytest did not run"
    report.say(f"   {summary}")
    if done.returncode != 0:
        report.fail("tests", summary, done.stdout[-5000:] + done.stderr[-1000:])
    for line in lines:
        if line.startswith("SKIPPED"):
            report.could_not("tests", line.removeprefix("SKIPPED").strip())
    return {"exit_code": done.returncode, "summary": summary}
