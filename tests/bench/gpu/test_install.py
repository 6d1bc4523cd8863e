"""Packages that `make gpu` installs, by the Makefile and the extras: one ONNX Runtime, with CUDA, and all flavors."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def recipe(target: str) -> str:
    """The lines that a target runs."""
    found = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)
    assert found is not None, target
    return found.group(1)


def installed() -> list[Requirement]:
    """Requirements named to pip for .venv-gpu, the project's extras taken apart."""
    words = [
        word
        for line in recipe("$(GPU_STAMP)").splitlines()
        if " -m pip install " in line
        for word in shlex.split(line.partition(" -m pip install ")[2])
    ]
    own = [Requirement(f"fluxtalk{word[1:]}") for word in words if word.startswith(".[")]
    named = [Requirement(word) for word in words if re.match(r"[a-z]", word) and "." not in word]
    found, open_ = named, own
    while open_:
        requirement = open_.pop()
        if requirement.name == "fluxtalk":
            open_ += [Requirement(line) for extra in requirement.extras for line in EXTRAS[extra]]
        else:
            found.append(requirement)
    return found


def test_the_environment_holds_one_onnxruntime_and_every_flavor() -> None:
    names = {requirement.name for requirement in installed()}
    assert {"onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "cuda-bindings", "torch", "onnx", "onnxscript"} <= names
    # The data set that is trained on is drawn with the type faces of matplotlib.
    assert {"matplotlib", "pytest", "pytest-timeout"} <= names
    assert "onnxruntime" not in names


def test_the_environment_is_not_that_of_the_cpu() -> None:
    """`install` puts the other onnxruntime into .venv."""
    assert re.search(r"^gpu: \$\(GPU_STAMP\) ##", MAKEFILE, re.M)
    for target in ("$(GPU_STAMP)", "gpu"):
        assert "$(BIN)" not in recipe(target)
        assert ".venv/" not in recipe(target)
    assert "/.venv-gpu/" in (ROOT / ".gitignore").read_text().splitlines()


def test_tensorrt_is_the_one_that_onnxruntime_is_linked_with() -> None:
    versions = [requirement.specifier for requirement in installed() if requirement.name == "tensorrt"]
    assert all(specifier.contains("10.16.1.11") for specifier in versions)
    assert not all(specifier.contains("11.4.0.106") for specifier in versions)


def test_the_gpu_extra_brings_the_libraries_of_cuda() -> None:
    """`onnxruntime-gpu` has these extras since 1.21."""
    (requirement,) = map(Requirement, EXTRAS["gpu"])
    assert requirement.extras == {"cuda", "cudnn"}
    assert not requirement.specifier.contains("1.20.2")
    assert requirement.specifier.contains("1.21.0")


def test_no_constraint_forbids_what_only_the_gpu_needs() -> None:
    constraints = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    pins = {requirement.name.replace("_", "-"): requirement.specifier for requirement in constraints}
    for requirement in installed():
        pin = pins.get(requirement.name.replace("_", "-"))
        if pin is not None:
            (version,) = (part.version for part in pin)
            assert requirement.specifier.contains(version), requirement
    # A build of torch for CPUs has a local version, such as +cpu.
    assert "+" not in str(pins["torch"])
