"""Measure all that needs a GPU, in one call: ``python -m bench.gpu``, or ``python bench/gpu`` if nothing is installed.

It trains on CUDA, exports, compiles with whichever TensorRT is installed, compares every way to run with eager
PyTorch, times them, and runs the tests that need a GPU. What is missing is noted with its reason, and the rest goes on.
``--cpu`` rehearses on a machine without a GPU what can be done there. docs/gpu.md says what to install.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu.report import Report
from fluxtalk.artifacts.files import git_revision

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = (
    "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "cuda-bindings",
    "triton", "pytest",
)  # fmt: skip
MEASURED_PRECISIONS = ("fp32", "fp16", "bf16")


def main(arguments: list[str] | None = None) -> int:
    """Do what can be done; 1 if something went wrong, or nothing could be done."""
    options = _options(arguments)
    report = Report(options.output, options.limit)
    report.part("facts", 0, lambda: report.results.update(facts=machine_info(options)))
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("torch") is None:
            report.could_not("everything", "PyTorch is not installed: pip install 'fluxtalk[train,export]'")
        elif not options.cpu and not _has_cuda():
            report.could_not("everything", "PyTorch finds no CUDA device here; --cpu rehearses without one")
        else:
            _measure(report, options, Path(folder))
    report.write()
    missing, failed = (len(report.results[name]) for name in ("could_not", "failed"))
    report.say(f"{options.output}: {missing} things could not be done, {failed} went wrong")
    # A part that could do nothing leaves an empty list.
    measured = any(report.results.get(name) for name in ("training", "parity"))
    return int(report.failed or not measured)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    # Nothing but the standard library: what is not installed is to be said, not to be in the way.
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "bench" / "results" / "gpu.json")
    parser.add_argument("--bundle", type=Path, help="Take this bundle; nothing is trained and exported.")
    parser.add_argument("--quick", action="store_true", help="Fewer pairs, shapes and calls.")
    parser.add_argument("--cpu", action="store_true", help="Rehearse without a GPU; implies --quick.")
    parser.add_argument("--limit", type=float, default=1500, help="Seconds after which nothing new begins.  [1500]")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="Do not run the tests that need a GPU.")
    parsed = parser.parse_args(arguments)
    parsed.quick |= parsed.cpu
    return parsed


def machine_info(options: argparse.Namespace) -> dict[str, Any]:
    """The machine, and what is installed."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "mode": "cpu" if options.cpu else "quick" if options.quick else "whole",
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "gpu": None,
    }
    if not options.cpu and _has_cuda():
        import torch

        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "driver": _driver(),
            "torch_cuda": torch.version.cuda,
        }
    for name, value in found.items():
        print(f"   {name}: {value}", flush=True)
    return found


def _measure(report: Report, options: argparse.Namespace, work: Path) -> None:
    """The parts in order of their worth."""
    from bench.gpu.models import write_large_bundle

    device = "cpu" if options.cpu else "cuda"
    training: Any = None
    if options.bundle is not None:
        demo = report.part("bundle", 0, lambda: _given(options.bundle))
    else:
        training = _training(work, device, options.quick)
        report.part("training", 60, lambda: _keep(report, "training", _train(report, training)))
        demo = report.part("export", 60, lambda: _export(report, training, work / "bundle"))
    if demo is not None:
        _examine(report, options, demo)
    if training is not None and "training" in report.results:
        report.part("killed and resumed", 60, lambda: _resume(report, training))
        report.part("process group", 60, lambda: _group(report, training))
    if options.cpu:
        return
    if options.tests:
        from bench.gpu.device_tests import run_tests

        report.part("tests", 120, lambda: _keep(report, "tests", run_tests(report)))
    precisions = MEASURED_PRECISIONS[:2] if options.quick else MEASURED_PRECISIONS
    large = report.part("large models", 120, lambda: write_large_bundle(work / "large", precisions))
    if large is not None:
        _examine(report, options, large)


def _keep(report: Report, name: str, found: Any) -> None:
    """Add rows to those of other subjects; anything else is there once."""
    if isinstance(found, list):
        report.results.setdefault(name, []).extend(found)
    else:
        report.results[name] = found


def _examine(report: Report, options: argparse.Namespace, subject: Any) -> None:
    """Engines, parity and latency of a subject."""
    from bench.gpu.engines import backends, build, parity
    from bench.gpu.latency import latency

    cpu, quick, name = options.cpu, options.quick, subject.name
    device = "cpu" if cpu else "cuda"

    def part(what: str, needs: float, work: Callable[[], list[dict[str, Any]]]) -> None:
        report.part(f"{what} of {name}", needs, lambda: _keep(report, what, work()))

    part("engines", 60, lambda: build(report, subject, cpu))
    part("parity", 20, lambda: parity(report, subject, backends(cpu), quick))
    part("latency", 20, lambda: latency(report, subject, device, quick))


def _resume(report: Report, training: Any) -> None:
    from bench.gpu.agreement import check_resumed
    from bench.gpu.training import kill_and_resume

    found = kill_and_resume(training)
    _keep(report, "killed_and_resumed", found)
    check_resumed(report, found, training.device)


def _group(report: Report, training: Any) -> None:
    from bench.gpu.agreement import check_group
    from bench.gpu.training import process_group

    found = process_group(training)
    _keep(report, "process_group", found)
    check_group(report, found, training.device)


def _training(work: Path, device: str, small: bool) -> Any:
    from bench.gpu.training import Training

    return Training(work, device, small)


def _train(report: Report, training: Any) -> dict[str, Any]:
    from bench.gpu.training import train

    _need_type_faces()
    found = train(training)
    report.say(f"   {found['steps']} steps in {found['seconds']} s, {found['pairs_per_s']:,.0f} pairs/s")
    return found


def _need_type_faces() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("matplotlib is not installed, with whose type faces the data set glyphs is drawn")


def _given(folder: Path) -> Any:
    from bench.gpu.models import Subject
    from fluxtalk.artifacts.bundle import read_bundle

    return Subject("given", read_bundle(folder))


def _export(report: Report, training: Any, folder: Path) -> Any:
    """The run's bundle in every precision, and its modules."""
    from bench.gpu.models import Subject
    from fluxtalk.datasets import default_cache_dir, load_dataset
    from fluxtalk.export.options import ExportOptions
    from fluxtalk.export.write_bundle import write_bundle
    from fluxtalk.model.checkpoints.trained_run import open_run

    _need_type_faces()
    run = open_run(training.folder(training.config).root)
    data = load_dataset(training.config.data, default_cache_dir(training.config.cache_dir))
    precisions = MEASURED_PRECISIONS[:2] if training.device == "cpu" else MEASURED_PRECISIONS
    # A short run on few pairs recalls little, in whichever precision.
    options = ExportOptions(precisions, eval_items=200, allow_quality_loss=True)
    bundle = write_bundle(run, data, folder, options, lambda line: report.say(f"   {line}"))
    return Subject("demo", bundle, {name: run.embedder(name) for name in bundle.manifest.modalities})


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
