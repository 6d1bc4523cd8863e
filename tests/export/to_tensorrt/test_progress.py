"""Progress of a build, and its interruption."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.devices.tensorrt_api import TensorRT
from fluxtalk.export.to_tensorrt import compile as to_tensorrt
from fluxtalk.export.to_tensorrt.compile import build_engine
from fluxtalk.export.to_tensorrt.job import BuilderOptions
from fluxtalk.export.to_tensorrt.progress import BuildProgress
from tests.export.to_tensorrt.commands import source

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install tensorrt_rtx"
)


def test_an_interrupted_build_leaves_nothing(
    api: TensorRT, every_kind: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives inside of a call from the builder, which must not see an exception."""

    class Interrupted(BuildProgress):
        def start(self, name: str, parent: str | None, steps: int) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(to_tensorrt, "BuildProgress", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_engine(api, source(every_kind, "sound"), BuilderOptions(["8.9"]), tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


def test_progress_of_a_real_build(
    api: TensorRT, every_kind: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []

    class Watched(BuildProgress):
        def step(self, name: str, step: int) -> bool:
            goes_on = super().step(name, step)
            shares.append(self.share)
            return goes_on

        def close(self) -> None:
            super().close()
            shares.append(self.share)

    monkeypatch.setattr(to_tensorrt, "BuildProgress", Watched)
    assert build_engine(api, source(every_kind, "sound"), BuilderOptions(["8.9"]), tmp_path) is not None
    assert len(set(shares)) > 5
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_phases_inside_of_phases_count_as_parts() -> None:
    state = BuildProgress("text in fp32")
    state.start("build", None, 4)
    state.start("optimize", "build", 2)
    assert state.step("optimize", 0)
    assert state.share == pytest.approx(1 / 8)
    state.start("time", "optimize", 10)
    assert state.step("time", 4)
    assert state.share == pytest.approx((1 / 2 + 1 / 4) / 4)
    state.finish("time")
    state.finish("optimize")
    assert state.step("build", 0)
    assert state.share == pytest.approx(1 / 4)
    state.canceled = True
    assert not state.step("build", 1)
    state.finish("build")
    assert state.share == 1.0
    state.close()
