"""Packages that `make demo` installs, by the Makefile and the extras: what the demo imports, and no tools of `dev`."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = (
    "fluxtalk.cli",
    "fluxtalk.train.run",
    "fluxtalk.export.write_bundle",
    "fluxtalk.runtime.index.build",
    "fluxtalk.runtime.index.search",
)
"""Modules behind the commands that the demo starts, past their lazy imports."""
OPTIONAL = {
    *("braceexpand", "datasets", "fsspec", "huggingface-hub", "mlflow", "openvino", "pyarrow", "wandb", "webdataset"),
}
"""Imported inside functions that the demo does not call: other data and places, another backend, the hub, trackers."""
NAMES = {"PIL": "pillow"}
"""Import names that are not the distribution's."""


def distributions(*extras: str) -> set[str]:
    """Packages that a `pip install` of these extras names, dependencies of the project included."""
    found: set[str] = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            name = canonicalize_name(requirement.name)
            found |= distributions(*requirement.extras) if name == "fluxtalk" else {name}
    return found


def file_of(module: str) -> Path | None:
    """The source of a module of this repository."""
    folder = ROOT.joinpath(*module.split("."))
    return next((f for f in (folder.with_suffix(".py"), folder / "__init__.py") if f.is_file()), None)


def imports(path: Path, everywhere: bool) -> Iterator[str]:
    """Modules that a file imports when it is imported itself; `everywhere`: inside its functions, too."""
    open_: list[ast.AST] = [ast.parse(path.read_text())]
    while open_:
        node = open_.pop()
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        is_type_checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not is_type_checking and (everywhere or not is_function):
            open_ += ast.iter_child_nodes(node)


def packages(*modules: str) -> set[str]:
    """Foreign packages that modules of this repository import, and the modules that come with them."""
    open_, seen = list(modules), set[str]()
    foreign: set[str] = set()
    while open_:
        module = open_.pop()
        path = file_of(module)
        if module in seen or path is None:
            continue
        seen.add(module)
        own = {name for name in imports(path, everywhere=module.startswith("bench.")) if is_own(name)}
        open_ += own
        tops = {name.partition(".")[0] for name in imports(path, everywhere=True) if not is_own(name)}
        foreign |= {canonicalize_name(NAMES.get(top, top)) for top in tops - set(sys.stdlib_module_names)}
    return foreign


def is_own(module: str) -> bool:
    return module.partition(".")[0] in ("bench", "fluxtalk")


def test_the_extra_covers_what_the_demo_imports() -> None:
    for command in COMMANDS:
        assert file_of(command) is not None, command
    imported = packages("bench.demo.__main__", *COMMANDS)
    assert {"torch", "onnx", "onnxruntime", "matplotlib", "usearch", "click"} <= imported
    assert imported - OPTIONAL <= distributions("demo")


def test_the_demo_installs_no_tools_and_no_other_backend() -> None:
    demo, everything = distributions("demo"), distributions("dev")
    assert demo < everything
    for name in ("ruff", "mypy", "pytest", "playwright", "ray", "openvino", "tensorrt-rtx", "starlette", "tensorboard"):
        assert name in everything
        assert name not in demo
    assert "onnxruntime-gpu" not in everything


def test_make_demo_needs_the_small_installation_only() -> None:
    assert re.search(r"^demo: \$\(DEMO_STAMP\) ##", MAKEFILE, re.M)
    small, _, rest = MAKEFILE.partition("$(DEMO_STAMP): ")[2].partition("$(STAMP): $(DEMO_STAMP)\n")
    assert "--editable '.[demo]'" in small
    assert "dev" not in small
    assert "--editable '.[dev]'" in rest
