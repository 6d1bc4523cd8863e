"""`fluxtalk features build --ray` on a real, local Ray."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fluxtalk.train.features.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'fluxtalk[ray]')"
    ),
    # Ray's own code, and the sockets and processes that it leaves to the interpreter.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 27)
        yield
        ray.shutdown()


def run(*parts: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in parts])


def hashes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}


def test_the_cache_is_that_of_the_command_without_ray(stage1_path: Path, tmp_path: Path) -> None:
    caches = [tmp_path / "here", tmp_path / "ray"]
    for cache, more in zip(caches, ((), ("--ray",)), strict=True):
        done = run("build", "--stage1-checkpoint", stage1_path, "--cache-dir", cache, "--device", "cpu", *more)
        assert done.exit_code == 0, done.output
        assert "test text: 32 items" in done.output
        assert run("verify", "--cache-dir", cache).exit_code == 0
    here, ray = map(hashes, caches)
    assert here.keys() == ray.keys()
    assert here == ray


def test_an_error_is_its_sentence(stage1_path: Path, tmp_path: Path) -> None:
    failed = run(
        "build", "--stage1-checkpoint", stage1_path, "--data", tmp_path / "none.csv", "--cache-dir", tmp_path, "--ray",
        "--device", "cpu",
    )  # fmt: skip
    assert failed.exit_code == 1
    assert "does not exist; check --data" in failed.output
