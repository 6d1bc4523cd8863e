"""A compiler that is missing is told from one that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import config
from torch._inductor.exc import InductorError, TritonMissing

from bench.gpu.compiler import missing_compiler
from bench.gpu.latency import _run_compiled
from bench.gpu.report import Report


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
def test_without_a_compiler_torch_compile_could_not_be_done(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", limit=100)

    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor, token_index: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(x) * token_index.sum()

    arrays: dict[str, Any] = {"x": np.ones((2, 3), np.float32)}
    module = torch.compile(Doubled(), dynamic=False)
    try:
        with config.patch({"cpp.cxx": (None, "/nowhere/c++"), "fx_graph_cache": False}):
            report.attempt("torch.compile", lambda: _run_compiled(module, "cpu", None, arrays, 2))
    finally:
        torch.compiler.reset()
    assert not report.failed, report.results["failed"]
    (entry,) = report.results["could_not"]
    assert entry["what"] == "torch.compile"
    assert entry["why"].startswith("torch.compile has nothing to compile with: No working C++ compiler found")


def test_triton_and_its_compiler() -> None:
    triton = InductorError(TritonMissing(None), None)
    assert "Cannot find a working triton installation" in str(missing_compiler(triton))
    words = "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl."
    wrapped = BackendCompilerFailed(object(), InductorError(RuntimeError(words), None), None)
    assert missing_compiler(wrapped) == words.rstrip(".")


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("boom")])
def test_any_other_failure_is_one(error: Exception) -> None:
    assert missing_compiler(InductorError(error, None)) is None
    assert missing_compiler(error) is None
