"""`fluxtalk-export trt` as tests call it."""

from __future__ import annotations

from click.testing import CliRunner, Result

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.engine import default_profile
from fluxtalk.export.to_tensorrt.cli import trt
from fluxtalk.export.to_tensorrt.job import CompileJob, compile_job


def source(bundle: Bundle, modality: str, precision: str = "fp32") -> CompileJob:
    return compile_job(bundle, modality, precision, [default_profile(bundle.manifest, modality)])


def run(*parts: object) -> Result:
    return CliRunner().invoke(trt, [str(part) for part in parts])


def one_sentence(done: Result, code: int, *words: str) -> None:
    assert done.exit_code == code, done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]
