"""Every class, flag, member and signature of TensorRT that our source touches exists in its real Python bindings.

The bindings of `tensorrt` are ordinary packages, its libraries are not: a library of a few lines with the symbols that
the bindings ask for lets them be imported anywhere. `make install` puts them where this looks for them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxtalk.devices.tensorrt_api import MODULES
from tests.export.to_tensorrt.trt_usage import MODULE, Api, Touch, Usage, dump, signatures

ROOT = Path(__file__).resolve().parents[3]
BINDINGS = ROOT / ".venv" / "tensorrt-bindings"
VERSIONS = ("10.16", "11.4")
ROOMS = ("fluxtalk", "export", "runtime", "bench")
RTX_ALONE = {
    (MODULE, "ComputeCapability"),
    ("ComputeCapability", "__members__"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    (MODULE, "CudaGraphStrategy"),
    ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
}
"""Members of TensorRT-RTX only; reached after a check of the flavor or of the class."""


@pytest.fixture(scope="module")
def rtx() -> Api:
    """The API of tensorrt_rtx, whose libraries are packages too."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    return _dumped("tensorrt_rtx", {})


@pytest.fixture(scope="module", params=VERSIONS)
def tensorrt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Api:
    """The API of the real bindings of one version of tensorrt."""
    folder = BINDINGS / request.param
    if not folder.is_dir():
        pytest.skip(f"{folder.relative_to(ROOT)} is missing; make install puts it there")
    if sys.platform != "linux" or shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("the stand-in for TensorRT's libraries needs Linux, gcc and nm")
    libraries = tmp_path_factory.mktemp("libraries")
    _build_stand_in(folder / "tensorrt_bindings" / "tensorrt.so", libraries, request.param.split(".")[0])
    api = _dumped("tensorrt_bindings", {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(folder)})
    assert "IBuilderConfig" in api
    return api


def _build_stand_in(bindings: Path, folder: Path, major: str) -> None:
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(bindings)], capture_output=True, text=True, check=True)
    undefined = [line.split()[-1] for line in listed.stdout.splitlines()]
    # The C functions of the missing libraries are in camel case; those of libc and CPython are not.
    wanted = [name for name in undefined if name.startswith(("create", "get", "init")) and not name.islower()]
    assert 5 < len(wanted) < 20, wanted
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        file = f"lib{name}.so.{major}"
        command = ["gcc", "-shared", "-fPIC", str(source), "-o", str(folder / file), f"-Wl,-soname,{file}"]
        subprocess.run(command, check=True)


def _dumped(module: str, environment: dict[str, str]) -> Api:
    path = os.pathsep.join([environment.get("PYTHONPATH", ""), str(ROOT)]).strip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.to_tensorrt.trt_usage", module],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": path},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    api: Api = json.loads(done.stdout)
    return api


def sources() -> list[Path]:
    """Every file of ours that names the adapter or the bindings' classes; links to rooms are followed once."""
    uses = re.compile(r"\btensorrt_api\b|\btrt\.[A-Z]")
    files = {file.resolve() for room in ROOMS for file in (ROOT / room).glob("**/*.py")}
    return sorted(file for file in files if uses.search(file.read_text(encoding="utf-8")))


def touched(api: Api) -> Iterator[Touch]:
    for source in sources():
        yield from sorted(Usage(api, source).touches)


def test_tensorrt_has_what_is_touched(tensorrt: Api) -> None:
    found = [touch for touch in touched(tensorrt) if (touch.owner, touch.member) not in RTX_ALONE]
    assert [problem for touch in found if (problem := touch.problem(tensorrt))] == []
    assert not RTX_ALONE & {(owner, member) for owner, members in tensorrt.items() for member in members}


def test_rtx_has_what_is_touched(rtx: Api) -> None:
    found = list(touched(rtx))
    assert [problem for touch in found if (problem := touch.problem(rtx))] == []
    names = {(touch.owner, touch.member) for touch in found}
    assert names >= RTX_ALONE
    # What compiling and running cannot do without: if the walk lost one of these, it has lost more.
    assert names >= {
        ("Builder", "__init__"),
        ("Builder", "create_network"),
        ("Builder", "build_serialized_network"),
        ("INetworkDefinition", "get_input"),
        ("ITensor", "shape"),
        ("OnnxParser", "parse_from_file"),
        ("ParserError", "node_operator"),
        ("IOptimizationProfile", "set_shape"),
        ("IBuilderConfig", "add_optimization_profile"),
        ("IBuilderConfig", "progress_monitor"),
        ("BuilderFlag", "TF32"),
        ("BuilderFlag", "VERSION_COMPATIBLE"),
        ("ITimingCache", "serialize"),
        ("IProgressMonitor", "step_complete"),
        ("ILogger", "log"),
        ("Runtime", "deserialize_cuda_engine"),
        ("Runtime", "engine_host_code_allowed"),
        ("ICudaEngine", "create_execution_context"),
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "execute_async_v3"),
    }


def test_nothing_touched_is_forgotten(rtx: Api) -> None:
    assert [line for source in sources() for line in Usage(rtx, source).forgotten()] == []


def test_flag_numbers_differ_and_names_do_not(rtx: Api, tensorrt: Api) -> None:
    """The reason why no number is written down anywhere."""
    for flag in ("TF32", "VERSION_COMPATIBLE"):
        assert tensorrt["BuilderFlag"][flag]["enumerator"]
        assert rtx["BuilderFlag"][flag]["enumerator"]
    assert tensorrt["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"]["enumerator"]


def test_the_modules_are_those_that_are_checked() -> None:
    assert MODULES == {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


@pytest.fixture(scope="module")
def small() -> Api:
    """Bindings of two classes, as the walk would read them."""
    method = {"kind": "method"}
    return {
        MODULE: {"Builder": {"kind": "class"}, "Flag": {"kind": "class"}},
        "Builder": {
            "__init__": {**method, "signatures": [{"names": ["logger"], "required": 1, "returns": "None"}]},
            "make_config": {**method, "signatures": [{"names": [], "required": 0, "returns": "Config"}]},
        },
        "Config": {
            "set_flag": {**method, "signatures": [{"names": ["flag"], "required": 1, "returns": "None"}]},
            "best_level": {"kind": "property", "settable": False, "returns": "int"},
        },
        "Flag": {"FAST": {"kind": "value", "enumerator": True}},
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("trt.Builder(log).make_config().set_flag(trt.Flag.FAST)", None),
        ("trt.Builder()", "__init__ takes"),
        ("trt.Builder(log).make_engine()", "make_engine does not exist"),
        ("c = trt.Builder(log).make_config(); c.set_flag(trt.Flag.FAST, 1)", "set_flag takes"),
        ("c = trt.Builder(log).make_config(); c.set_flag(flags=1)", "set_flag takes"),
        ("c = trt.Builder(log).make_config(); c.set_flag(trt.Flag.SLOW)", "Flag.SLOW does not exist"),
        ("c = trt.Builder(log).make_config(); c.best_level = 3", "cannot be assigned"),
        ("c = trt.Builder(log).make_config(); c.set_flag", "is a method, and is not called"),
        ("c = trt.Builder(log).make_config(); c.best_level()", "is called"),
        ("trt.Timer", "module.Timer does not exist"),
    ],
)
def test_the_check_can_fail(small: Api, tmp_path: Path, body: str, words: str | None) -> None:
    source = tmp_path / "ours.py"
    source.write_text(f"def build(trt, log):\n{textwrap.indent(body, '    ')}\n")
    problems = [problem for touch in Usage(small, source).touches if (problem := touch.problem(small))]
    assert bool(problems) == (words is not None)
    assert words is None or any(words in problem for problem in problems), problems


def test_what_no_type_is_found_for_is_reported(small: Api, tmp_path: Path) -> None:
    source = tmp_path / "ours.py"
    source.write_text("def build(thing):\n    thing.set_flag(1)\n")
    assert Usage(small, source).forgotten() == ["ours.py:2: .set_flag"]


def test_signatures_of_pybind() -> None:
    doc = (
        "run(*args, **kwargs)\nOverloaded function.\n\n"
        "1. run(self: m.C, name: str, shape: tuple[int, int]) -> bool\n\n    Text (not: a signature) -> x.\n\n"
        "2. run(self: m.C, level: m.Level = <Level.LOW: 0>) -> m.sub.Result\n"
    )
    assert signatures(doc) == [
        {"names": ["name", "shape"], "required": 2, "returns": "bool"},
        {"names": ["level"], "required": 0, "returns": "Result"},
    ]
    assert dump("decimal")["Decimal"]["is_nan"]["kind"] == "method"
