"""Cores that this process may use, and the range of thread counts that it accepts."""

from __future__ import annotations

import math
import os
from pathlib import Path

from fluxtalk.runtime.arguments import check_integer

_MOST = 64
"""Threads that may be asked for on any machine. Beyond its cores they gain nothing, and starting them takes minutes."""


def check_threads(threads: int | None) -> int | None:
    """Return a thread count as Python's integer; None stays None.

    Raises:
        UsageError: it is not an integer (Python's or numpy's) from 1 to 64, or to this machine's cores if it has more.
    """
    return None if threads is None else check_integer("threads", threads, 1, max(_MOST, os.cpu_count() or 1))


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores of the affinity mask, limited by the control group's CPU quota (version 2 or 1); at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _quota(cgroup: Path) -> float | None:
    try:
        limit, period = (cgroup / "cpu.max").read_text(encoding="utf-8").split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text(encoding="utf-8")
        period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="utf-8")
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError):
        return None
