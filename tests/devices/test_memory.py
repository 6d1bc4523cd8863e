"""Available memory, by the machine and by control groups of both versions."""

from __future__ import annotations

from pathlib import Path

from fluxtalk.devices.memory import available_memory


def proc_of(tmp_path: Path, groups: str) -> Path:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       24000 kB\nMemFree:  1 kB\nMemAvailable:   20000 kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    return proc


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_the_machine_alone(tmp_path: Path) -> None:
    assert available_memory(proc_of(tmp_path, ""), tmp_path / "none") == 20_000 * 1024
    assert available_memory(tmp_path / "no proc", tmp_path / "none") is None
    real = available_memory()
    assert real is None or real > 0


def test_version_2_limits_of_every_group_above_count_less_cached_files(tmp_path: Path) -> None:
    proc, root = proc_of(tmp_path, "0::/pod/container\n"), tmp_path / "cgroup"
    group(root / "pod", memory__max="9000000\n", memory__current="3000000\n", memory__stat="inactive_file 1000000\n")
    group(root / "pod" / "container", memory__max="max\n", memory__current="5\n", memory__stat="inactive_file 0\n")
    assert available_memory(proc, root) == 7_000_000


def test_version_1_inside_a_container_whose_path_is_not_mounted(tmp_path: Path) -> None:
    proc, root = proc_of(tmp_path, "3:cpu:/x\n4:memory:/docker/abc\n0::/\n"), tmp_path / "cgroup"
    group(
        root / "memory",
        memory__limit_in_bytes="8000000",
        memory__usage_in_bytes="6000000",
        memory__stat="total_inactive_file 500000\n",
    )
    assert available_memory(proc, root) == 2_500_000
    (root / "memory" / "memory.usage_in_bytes").write_text("9000000")
    assert available_memory(proc, root) == 0
