"""Memory that this process may still take, by the machine and by its control group; no package is needed."""

from __future__ import annotations

from pathlib import Path

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Count the bytes that can be taken without swapping or being killed; None on a system that does not say.

    The least of what the machine has available and what each control group above this process (version 1 or 2) has
    left, files in its cache not counted.
    """
    found = [_of_machine(proc), *(_of_group(group, names) for group, names in _groups(proc, cgroup))]
    known = [value for value in found if value is not None]
    return max(0, min(known)) if known else None


def _of_machine(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text(encoding="utf-8").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError, IndexError):
        return None


def _groups(proc: Path, cgroup: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """List the control groups of this process up to the root; inside a container the root is its own group."""
    try:
        lines = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    groups: list[tuple[Path, tuple[str, str, str]]] = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (cgroup / "memory", _V1) if controllers else (cgroup, _V2)
        inside = Path(path.lstrip("/"))
        groups += [(root / part, names) for part in (inside, *inside.parents)]
    return groups


def _of_group(group: Path, names: tuple[str, str, str]) -> int | None:
    limit, usage, cached = names
    try:
        most = int((group / limit).read_text(encoding="utf-8"))  # `max`, without a limit, is not a number
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        return most - int((group / usage).read_text(encoding="utf-8")) + int(statistics.get(cached, 0))
    except (OSError, ValueError):
        return None
