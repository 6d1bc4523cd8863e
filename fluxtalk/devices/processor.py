"""The processor of this machine, as its system describes it."""

from __future__ import annotations

import functools
import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Processor:
    """Architecture, model and instructions of a processor."""

    architecture: str
    """Name by the system, such as ``x86_64``."""
    model: str
    """Name by its maker; empty if the system does not tell."""
    instructions: str
    """Hash of the names of its instruction sets; empty if the system does not tell."""


@functools.cache
def this_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Describe the processor; machines on which a graph may be differently fast differ in it."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return Processor(platform.machine(), platform.processor(), "")
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    names = told.get("flags") or told.get("Features") or ""
    instructions = hashlib.sha256(" ".join(sorted(names.split())).encode()).hexdigest()[:16] if names else ""
    return Processor(platform.machine(), told.get("model name", ""), instructions)
