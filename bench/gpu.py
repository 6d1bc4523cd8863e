"""Everything that needs a GPU, in one call: ``python -m bench.gpu``, or this file from a source tree, uninstalled.

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
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Run as a file: its own folder, whose files are named like other packages, gives way to the source tree.
    sys.path[0] = str(ROOT)

from bench.gpu_report import Report  # noqa: E402
from fluxtalk.artifacts import git_revision  # noqa: E402

PACKAGES = (
    "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "cuda-bindings",
    "triton", "pytest",
)  # fmt: skip
PRECISIONS = ("fp32", "fp16", "bf16")


def main(arguments: list[str] | None = None) -> int:
    """Do what can be done; 1 where something went wrong, or nothing could be done."""
    options = _options(arguments)
    report = Report(options.output, options.limit)
    report.part("facts", 0, lambda: report.results.update(facts=facts(options)))
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
    measured = {"training", "parity"} & set(report.results)
    return int(report.failed or not measured)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    # Nothing but the standard library: what is not installed is to be said, not to be in the way.
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "bench" / "results" / "gpu.json")
    parser.add_argument("--bundle", type=Path, help="Take this bundle; nothing is trained and exported.")
    parser.add_argument("--quick", action="store_true", help="Fewer pairs, shapes and calls.")
    parser.add_argument("--cpu", action="store_true", help="Rehearse without a GPU; implies --quick.")
    parser.add_argument("--limit", type=float, default=1500, help="Seconds after which nothing new begins.  [1500]")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="Do not run `pytest -m gpu`.")
    parsed = parser.parse_args(arguments)
    parsed.quick |= parsed.cpu
    return parsed


def facts(options: argparse.Namespace) -> dict[str, Any]:
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
    from bench.gpu_engines import backends, build, parity
    from bench.gpu_latency import latency
    from bench.gpu_models import Subject, write_large_bundle

    device = "cpu" if options.cpu else "cuda"
    results, quick = report.results, options.quick

    def keep(name: str, rows: Any) -> None:
        if isinstance(rows, list):
            results.setdefault(name, []).extend(rows)
        else:
            results[name] = rows

    def examine(subject: Subject) -> None:
        name = subject.name
        report.part(f"engines of {name}", 60, lambda: keep("engines", build(report, subject, options.cpu)))
        report.part(
            f"parity of {name}", 20, lambda: keep("parity", parity(report, subject, backends(options.cpu), quick))
        )
        report.part(f"latency of {name}", 20, lambda: keep("latency", latency(report, subject, device, quick)))

    training: Any = None
    demo: Subject | None = None
    if options.bundle is not None:
        demo = report.part("bundle", 0, lambda: _given(options.bundle))
    else:
        training = _training(work, device, quick)
        report.part("training", 60, lambda: keep("training", _train(report, training)))
        demo = report.part("export", 60, lambda: _export(report, training, work / "bundle"))
    if demo is not None:
        examine(demo)
    if training is not None and "training" in results:
        from bench.gpu_training import kill_and_resume, process_group

        report.part("killed and resumed", 60, lambda: keep("killed_and_resumed", kill_and_resume(training)))
        report.part("process group", 60, lambda: keep("process_group", process_group(training)))
    if not options.cpu:
        if options.tests:
            report.part("tests", 120, lambda: keep("tests", _tests(report)))
        precisions = PRECISIONS[:2] if quick else PRECISIONS
        large = report.part("large models", 120, lambda: write_large_bundle(work / "large", precisions))
        if large is not None:
            examine(large)


def _training(work: Path, device: str, small: bool) -> Any:
    from bench.gpu_training import Training

    return Training(work, device, small)


def _train(report: Report, training: Any) -> dict[str, Any]:
    from bench.gpu_training import train

    found = train(training)
    report.say(f"   {found['steps']} steps in {found['seconds']} s, {found['pairs_per_s']:,.0f} pairs/s")
    return found


def _given(folder: Path) -> Any:
    from bench.gpu_models import Subject
    from fluxtalk.bundle import read_bundle

    return Subject("given", read_bundle(folder))


def _export(report: Report, training: Any, folder: Path) -> Any:
    """The run's bundle in every precision, and its modules."""
    from bench.gpu_models import Subject
    from fluxtalk.datasets import default_cache_dir, load_dataset
    from fluxtalk.export.options import ExportOptions
    from fluxtalk.export.write_bundle import write_bundle
    from fluxtalk.model.run import open_run

    run = open_run(training.folder(training.config).root)
    data = load_dataset(training.config.data, default_cache_dir(training.config.cache_dir))
    precisions = PRECISIONS[:2] if training.device == "cpu" else PRECISIONS
    # A short run on few pairs recalls little, in whichever precision.
    options = ExportOptions(precisions, eval_items=200, allow_quality_loss=True)
    bundle = write_bundle(run, data, folder, options, lambda line: report.say(f"   {line}"))
    return Subject("demo", bundle, {name: run.embedder(name) for name in bundle.manifest.modalities})


def _tests(report: Report) -> dict[str, Any]:
    if importlib.util.find_spec("pytest") is None:
        raise ImportError("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "tests"]
    if importlib.util.find_spec("pytest_timeout") is None:
        # The project's settings name its options.
        command += ["-c", os.devnull, "--rootdir", str(ROOT)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
        timeout=max(60.0, report.left),
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    report.say("   " + (lines[-1] if lines else done.stderr[-300:]))
    if done.returncode not in (0, 5):
        report.fail("tests", lines[-1] if lines else "pytest did not run", done.stdout[-5000:] + done.stderr[-1000:])
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else "", "skipped": _skips(lines)}


def _skips(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("SKIPPED")]


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


if __name__ == "__main__":
    sys.exit(main())
