"""`fluxtalk features build --ray` on a real, local Ray."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from fluxtalk.train.features.cli import main
from tests.local_ray import ON_RAY, cluster  # noqa: F401  (a fixture of every test here)

pytestmark = ON_RAY


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
