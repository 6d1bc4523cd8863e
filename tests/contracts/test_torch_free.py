"""Serving needs no torch: proved in a fresh interpreter, after a first embedding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import Made

FORBIDDEN = ("torch", "onnx", "onnxscript", "fluxtalk.model", "fluxtalk.train", "fluxtalk.export")


def in_fresh_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_serving_imports_no_torch(made: Made, table_path: Path) -> None:
    picture = next(table_path.parent.glob("test-*.png"))
    code = f"""
import sys
from fluxtalk.runtime import load
with load({str(made.bundle.folder)!r}, verify=True) as embedder:
    assert embedder.embed("text", ["black chess queen"], k=2).shape == (1, 48)
    assert embedder.embed("image", [{str(picture)!r}]).shape == (1, 48)
print([name for name in {FORBIDDEN!r} if name in sys.modules])
"""
    assert in_fresh_interpreter(code).strip() == "[]"


def test_the_server_imports_no_torch() -> None:
    code = f"""
import sys
import fluxtalk.runtime.server.run
print([name for name in {FORBIDDEN!r} if name in sys.modules])
"""
    assert in_fresh_interpreter(code).strip() == "[]"


def test_import_fluxtalk_is_cheap() -> None:
    code = "import fluxtalk, sys; print([n for n in ('torch', 'onnxruntime', 'numpy', 'PIL') if n in sys.modules])"
    assert in_fresh_interpreter(code).strip() == "[]"


def test_public_names_load_lazily() -> None:
    code = "import fluxtalk; print(fluxtalk.RegisterTokenModule.__name__, fluxtalk.RegisterTokenLoss.__name__)"
    assert in_fresh_interpreter(code).split() == ["RegisterTokenModule", "RegisterTokenLoss"]


def test_help_does_not_wait_for_torch() -> None:
    code = """
import sys
from click.testing import CliRunner
from fluxtalk.cli import main
for parts in ("", "train", "export verify", "embed", "serve", "stage1"):
    assert CliRunner().invoke(main, [*parts.split(), "--help"]).exit_code == 0
print("torch" in sys.modules)
"""
    assert in_fresh_interpreter(code).strip() == "False"


def test_without_torch_the_extra_is_named(made: Made, tmp_path: Path) -> None:
    commands: dict[str, list[tuple[str | Path, ...]]] = {
        "fluxtalk[train]": [
            ("fluxtalk.cli", "eval", made.run.root),
            ("fluxtalk.cli", "inspect", made.run.root),
            ("fluxtalk.train.cli", "--stage1_checkpoint", "a", "--output_dir", tmp_path, "--log_name", "b"),
        ],
        "fluxtalk[export]": [("fluxtalk.export.cli", "onnx", made.run.root, "-o", tmp_path / "bundle")],
    }
    for extra, calls in commands.items():
        for module, *parts in calls:
            code = f"""
import importlib, sys
sys.modules["torch"] = None
sys.argv = {["fluxtalk", *map(str, parts)]!r}
importlib.import_module({module!r}).main()
"""
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.returncode == 1, parts
            wanted = f"error: This command needs torch, which is not installed; pip install '{extra}'.\n"
            assert done.stderr == wanted, parts
