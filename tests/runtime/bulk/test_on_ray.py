"""`fluxtalk embed --ray` on a real, local Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fluxtalk.runtime.bulk.cli import embed
from tests.conftest import Made
from tests.local_ray import ON_RAY, cluster  # noqa: F401  (a fixture of every test here)

pytestmark = ON_RAY


def run(*arguments: object) -> Result:
    return CliRunner().invoke(embed, [str(argument) for argument in arguments])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text("id,text\n" + "".join(f"{i},letter {i} omega\n" for i in range(700)))
    return path


def test_the_vectors_are_those_of_the_command_without_ray(made: Made, table: Path, tmp_path: Path) -> None:
    arguments = (made.bundle.folder, "text", "--input", table, "-k", 2, "--threads", 1)
    for name, more in (("here.npy", ()), ("ray.npy", ("--ray",))):
        done = run(*arguments, *more, "-o", tmp_path / name)
        assert done.exit_code == 0, done.output
        assert "700 x 48" in done.output
    assert np.allclose(np.load(tmp_path / "ray.npy"), np.load(tmp_path / "here.npy"), atol=1e-6)
    assert not (tmp_path / "ray.npy.parts").exists()


def test_an_error_is_its_sentence_and_what_is_done_is_kept(made: Made, tmp_path: Path, table_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    pictures = sorted(table_path.parent.glob("*.png"))[:3]
    rows = [*pictures * 100, tmp_path / "broken.png"]
    (tmp_path / "list.txt").write_text("\n".join(map(str, rows)))
    arguments = (made.bundle.folder, "image", "--input", tmp_path / "list.txt", "--threads", 1)
    output = tmp_path / "v.npy"
    failed = run(*arguments, "--ray", "-o", output)
    assert failed.exit_code == 1
    assert "image item 300" in failed.output
    assert len(list((tmp_path / "v.npy.parts").iterdir())) == 2
    again = run(*arguments, "--on-bad-item", "skip", "-o", output)  # without Ray: the parts are the same
    assert again.exit_code == 0, again.output
    assert "301 items of an earlier call" in again.output
    assert np.load(output).shape == (300, 48)


def test_files_are_read_wherever_the_worker_works(
    made: Made, tmp_path: Path, table_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(table_path.parent)
    pictures = sorted(path.name for path in table_path.parent.glob("*.png"))[:5]
    for name, more in (("here.npy", ()), ("ray.npy", ("--ray",))):
        done = run(made.bundle.folder, "image", *pictures, *more, "--threads", 1, "-o", tmp_path / name)
        assert done.exit_code == 0, done.output
    assert np.allclose(np.load(tmp_path / "ray.npy"), np.load(tmp_path / "here.npy"), atol=1e-6)
