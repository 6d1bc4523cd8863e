"""`fluxtalk-export trt` as tests call it."""

from __future__ import annotations

from click.testing import CliRunner, Result

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.export.to_tensorrt.cli import trt
from fluxtalk.export.to_tensorrt.compile import Source, source_of
from fluxtalk.export.to_tensorrt.profiles import default_profile


def source(bundle: Bundle, modality: str, precision: str = "fp32") -> Source:
    return source_of(bundle, modality, precision, [default_profile(bundle, modality)])


def run(*parts: object) -> Result:
    return CliRunner().invoke(trt, [str(part) for part in parts])


def one_sentence(done: Result, code: int, *words: str) -> None:
    assert done.exit_code == code, done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]
