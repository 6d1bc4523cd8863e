"""`fluxtalk embed --ray` with a table, pictures and vectors in a bucket: workers that reach it on their own."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result

from fluxtalk.artifacts.storage import RemotePath, stored_path
from fluxtalk.runtime.bulk.cli import embed
from fluxtalk.runtime.bulk.parts import PartFiles
from tests.conftest import Made
from tests.local_ray import ON_RAY, local_ray
from tests.stored import local_s3

pytestmark = ON_RAY


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with local_s3() as address, local_ray():
        yield address


def folder(bucket: str, name: str) -> RemotePath:
    path = stored_path(f"{bucket}/{name}")
    assert isinstance(path, RemotePath)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(embed, [str(argument) for argument in arguments])


def test_a_table_becomes_vectors_and_an_interrupted_call_goes_on(
    made: Made, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = folder(bucket, "texts")
    (here / "t.csv").write_bytes(("text\n" + "".join(f"letter {i} omega\n" for i in range(1500))).encode())
    arguments = (made.bundle.folder, "text", "--input", here / "t.csv", "-k", 2, "--threads", 1)
    removed: list[bool] = []
    with monkeypatch.context() as patch:
        # Interrupted after all parts, when they are put together: parts stay.
        patch.setattr(PartFiles, "read", interrupt)
        patch.setattr(PartFiles, "remove", lambda self: removed.append(True))
        run(*arguments, "--ray", "-o", here / "v.npy")
    parts = (here / "v.npy.parts").files()
    assert [part.name for part in parts] == [f"{i:08d}.safetensors" for i in range(6)]
    assert removed == []
    parts[1].unlink()
    parts[4].unlink()
    done = run(*arguments, "--ray", "-o", here / "v.npy")
    assert done.exit_code == 0, done.output
    assert "1500 x 48 float32, 988 items of an earlier call" in done.output
    assert run(*arguments, "-o", here / "here.npy").exit_code == 0
    ray, without = (np.load(io.BytesIO((here / name).read_bytes())) for name in ("v.npy", "here.npy"))
    assert np.allclose(ray, without, atol=1e-6)
    assert [path.name for path in here.files()] == ["here.npy", "t.csv", "v.npy"]


def interrupt(self: PartFiles, count: int) -> Iterator[None]:
    raise KeyboardInterrupt


def test_pictures_are_read_by_the_workers(made: Made, bucket: str, table_path: Path) -> None:
    here = folder(bucket, "pictures")
    pictures = sorted(table_path.parent.glob("*.png"))[:4]
    for picture in pictures:
        (here / picture.name).write_bytes(picture.read_bytes())
    (here / "list.txt").write_bytes("\n".join([str(here / picture.name) for picture in pictures]).encode())
    done = run(made.bundle.folder, "image", "--input", here / "list.txt", "--ray", "-o", here / "v.npy")
    assert done.exit_code == 0, done.output
    assert "4 x 48" in done.output


def test_a_worker_that_ends_is_started_again(made: Made, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the system took its memory, or its machine: the part is done by its successor."""
    import ray

    here = folder(bucket, "killed")
    (here / "t.csv").write_bytes(("text\n" + "".join(f"letter {i} omega\n" for i in range(1500))).encode())
    waited = ray.wait
    killed: list[psutil.Process] = []

    def wait(*given: Any, **named: Any) -> Any:
        found = waited(*given, **named)
        if not killed:
            processes = psutil.Process().children(recursive=True)
            killed.append(next(one for one in processes if one.name().startswith("ray::_Worker")))
            killed[0].kill()
        return found

    monkeypatch.setattr(ray, "wait", wait)
    done = run(made.bundle.folder, "text", "--input", here / "t.csv", "--threads", 1, "--ray", "-o", here / "v.npy")
    assert done.exit_code == 0, done.output
    assert killed
    assert "1500 x 48" in done.output
