"""Agreement that a resumed run and a process group need with a plain run."""

from __future__ import annotations

from typing import Any

from bench.gpu.report import Report

LARGEST_DIFFERENCE = {"cpu": 0.0, "cuda": 5e-4}
"""Largest allowed difference of one weight, by device. A CPU repeats itself to the bit. CUDA kernels add with atomics,
in another order each time; how far that goes was not measured yet."""


def check_resumed(report: Report, found: dict[str, Any], device: str) -> None:
    """Note what is wrong with a run that was killed and resumed, as `bench.gpu.training.kill_and_resume` found it."""
    what = "killed and resumed"
    if not found["killed"]:
        report.fail(what, "the run ended by itself before it could be killed, so that nothing was resumed")
    elif not 0 < found["at_step"] < found["last_step"]:
        report.fail(what, f"killed at step {found['at_step']} of {found['last_step']}, which leaves nothing to resume")
    _check_difference(report, what, "the uninterrupted run", found["largest_difference"], device)


def check_group(report: Report, found: dict[str, Any], device: str) -> None:
    """Note what is wrong with steps in a process group, as `bench.gpu.training.process_group` found them."""
    backend = {"cpu": "gloo", "cuda": "nccl"}[device]
    if found["backend"] != backend:
        report.fail("process group", f"it ran on {found['backend']}, not on {backend}")
    _check_difference(report, "process group", "the same steps without a group", found["largest_difference"], device)


def _check_difference(report: Report, what: str, other: str, difference: float, device: str) -> None:
    allowed = LARGEST_DIFFERENCE[device]
    if difference > allowed:
        report.fail(what, f"a weight is {difference:.1e} from that of {other}; at most {allowed:.0e} is allowed")
    else:
        report.say(f"   {what}: at most {difference:.1e} from {other}")
