"""What is written beside its name: killed writers, second writers, full disks, permissions."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fluxtalk.artifacts.files import atomic_file, atomic_folder, write_json
from fluxtalk.artifacts.index import IndexSpec
from fluxtalk.artifacts.unfinished import sweep
from fluxtalk.errors import DataError, IndexFileError
from fluxtalk.runtime.index.build import build_index

WRITER = """
import sys, time
from pathlib import Path
from fluxtalk.artifacts.files import atomic_folder
from fluxtalk.errors import DataError
with atomic_folder(Path(sys.argv[1]), DataError) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes a folder, and does not come to its end."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        try:
            yield process
        finally:
            process.kill()


def of_age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    with writer(tmp_path / "killed") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with writer(tmp_path / "living"):
        killed, living = (next(tmp_path.glob(f".{name}.*.tmp")) for name in ("killed", "living"))
        for path in (killed, living):
            of_age(path, 10)
        with (
            pytest.raises(DataError, match=r"Another process is writing .*living; wait until it ends"),
            atomic_folder(tmp_path / "living", DataError),
        ):
            pytest.fail("two writers of one folder")
        assert (living / "half").is_file()
        assert not killed.exists()
        with atomic_folder(tmp_path / "killed", DataError) as folder:
            (folder / "whole").touch()
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["whole"]


def test_leftovers_of_versions_that_did_not_lock_go_by_age(tmp_path: Path) -> None:
    old, young, others = (tmp_path / f".{name}.tmp" for name in ("name.abcdef12", "name.abcdef13", "other.abcdef14"))
    for path in (old, young, others):
        path.touch()
    of_age(old, 2 * 24 * 3600)
    of_age(others, 2 * 24 * 3600)
    write_json(tmp_path / "name", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([young.name, others.name, "name"])
    sweep(tmp_path / "other", again=True)
    assert not others.exists()


def test_the_second_of_two_writers_is_told_and_the_first_ones_stays(tmp_path: Path) -> None:
    def write_second() -> None:
        with atomic_folder(tmp_path / "made", DataError) as folder:
            (folder / "second").touch()
            (tmp_path / "made").mkdir()
            (tmp_path / "made" / "first").touch()

    with pytest.raises(DataError, match="was written by another process in the meantime"):
        write_second()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["first"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_permissions_are_those_of_the_umask_whatever_library_wrote(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a", {})
        with atomic_file(tmp_path / "b") as temporary:
            save_file({"x": np.zeros(3)}, temporary)
        with atomic_folder(tmp_path / "c", DataError) as folder:
            (folder / "file").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (*tmp_path.iterdir(), tmp_path / "c" / "file")}
    assert modes == {"a": 0o666 & ~umask, "b": 0o666 & ~umask, "c": 0o777 & ~umask, "file": 0o666 & ~umask}


def test_names_of_the_longest_length_are_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        write_json(tmp_path / name, {})
        assert (tmp_path / name).is_file()


def test_what_is_not_a_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="something else than a file"):
            write_json(path, {})
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_an_index_on_a_full_disk_is_an_error_of_its_path(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 8, 64) if kind == "tokens" else (500, 64)).astype(np.float32)
    spec = IndexSpec("bundle", "space", "image", kind, 3, "float32")
    # No file may grow beyond the limit, as on a disk without more space.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match=r"too large|could not be written whole") as caught:
            build_index(tmp_path / "index", [vectors[:250], vectors[250:]], [str(i) for i in range(500)], spec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "index")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "mine").touch()
    with pytest.raises(IndexFileError, match="already exists"):
        build_index(tmp_path / "index", [vectors], [], spec)
