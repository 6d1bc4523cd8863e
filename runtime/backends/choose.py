"""Which backend runs a bundle here, in which precision, and why."""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.engine import Flavor, default_profile, find_engine
from fluxtalk.devices.gpu import compute_capability
from fluxtalk.devices.tensorrt_api import MODULES, load_tensorrt
from fluxtalk.errors import BackendError
from fluxtalk.runtime.backends.engine_shapes import Input, Layout
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession, import_onnxruntime
from fluxtalk.runtime.backends.openvino_session import OpenVinoSession, computes_bf16, openvino_installed
from fluxtalk.runtime.backends.options import AUTO, NATIVE, OPENVINO, PROVIDERS, BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.backends.tensorrt_session import TensorRTSession

_LARGE = 8_000_000
"""Numbers in a graph from which on OpenVINO was faster (bench/latency/backends.py)."""


@dataclass(frozen=True)
class Choice:
    """What runs a bundle."""

    backend: str
    """One of `BACKENDS`, and not ``auto``."""
    precision: str
    reason: str
    """For people."""


def choose(
    bundle: Bundle,
    options: BackendOptions,
    modalities: Sequence[str] | None = None,
    failed: Mapping[str, str] | None = None,
) -> Choice:
    """Choose what runs a bundle on this machine.

    Args:
        options: a backend that is named is taken, or refused. ``auto`` takes the first that is installed and fits: a
            native engine for every modality; ONNX Runtime on CUDA if there is a GPU; OpenVINO if it was measured to be
            faster than ONNX Runtime on the CPU (large graphs, in a precision that it computes in) or alone runs what is
            asked; and ONNX Runtime on the CPU. A precision that is named is taken, or refused. None takes on a GPU
            fp16, else bf16, else the bundle's first (bf16 last in ONNX Runtime, whose providers have only some
            operators for it); on the CPU the bundle's first that runs there.
        modalities: those that will be loaded; None takes all.
        failed: backend to why it did not start, of those that ``auto`` tried already.

    Raises:
        UsageError: the bundle does not hold the precision.
        BackendError: what was asked for is missing, or does not run.
        ArtifactError: the record of an engine was changed.
    """
    backend, precision = options.backend, options.precision
    bundle.precision(precision)
    wanted = list(modalities) if modalities is not None else list(bundle.manifest.modalities)
    if backend in NATIVE:
        chosen = _native_precision(bundle, NATIVE[backend], options, wanted)
        return Choice(backend, chosen, "asked for by name")
    if backend == OPENVINO:
        return Choice(backend, bundle.precision(precision), "asked for by name")
    if backend != AUTO:
        return Choice(backend, _onnxruntime_precision(bundle, backend, precision), "asked for by name")
    return _choose_automatically(bundle, options, wanted, failed or {})


def open_session(bundle: Bundle, modality: str, options: BackendOptions) -> Session:
    """Open one modality's session on a backend by name.

    Args:
        options: with a backend other than ``auto``, and a precision that the bundle holds.

    Raises:
        BackendError: the backend is missing, or refuses the graph or engine.
        ArtifactError: the engine or its record was changed.
    """
    backend, precision = options.backend, bundle.precision(options.precision)
    if backend in NATIVE:
        return TensorRTSession(bundle, modality, precision, NATIVE[backend], allow_host_code=options.allow_host_code)
    graph = bundle.graph(modality, precision)
    if backend == OPENVINO:
        return OpenVinoSession(graph, options.threads, precision)
    if backend != "ort-tensorrt":
        return OnnxRuntimeSession(graph, backend, options.threads, precision, spinning=options.spinning)
    engines = bundle.engines / "ort-tensorrt" / bundle.graph_hash(modality, precision)[:16]
    layout = compiled_layout(bundle, modality)
    return OnnxRuntimeSession(graph, backend, options.threads, precision, engines, layout, options.spinning)


def compiled_layout(bundle: Bundle, modality: str) -> Layout:
    """Say what ONNX Runtime's TensorRT provider compiles a modality for: its inputs, and one profile."""
    inputs = {
        spec.name: Input(np.dtype(spec.dtype), tuple(spec.shape))
        for spec in bundle.manifest.modalities[modality].inputs
    }
    return Layout(modality, inputs, [default_profile(bundle.manifest, modality)])


def _choose_automatically(
    bundle: Bundle, options: BackendOptions, modalities: Sequence[str], failed: Mapping[str, str]
) -> Choice:
    precision = options.precision
    passed_over = [f"{name} was passed over: {why}" for name, why in failed.items()]
    for name in _native_backends():
        if name in failed:
            continue
        try:
            chosen = _native_precision(bundle, NATIVE[name], options, modalities)
            reason = f"chosen because {bundle.engines} has engines for this GPU"
            return Choice(name, chosen, "; ".join([reason, *passed_over]))
        except BackendError as error:
            passed_over.append(f"{name} was passed over: {error}")
    # What onnxruntime lists is what it was built with; a package for GPUs is installed on machines without one too.
    has_cuda = PROVIDERS["ort-cuda"] in import_onnxruntime().get_available_providers()
    has_gpu = has_cuda and compute_capability() is not None
    if has_gpu and "ort-cuda" not in failed:
        taken = _onnxruntime_precision(bundle, "ort-cuda", precision)
        choice = Choice("ort-cuda", taken, "chosen because this ONNX Runtime has CUDA")
    else:
        lacks = "CUDA does not start" if has_gpu else "there is no NVIDIA GPU here" if has_cuda else ""
        choice = _choose_on_cpu(bundle, precision, modalities, lacks or "this ONNX Runtime has no CUDA")
    return dataclasses.replace(choice, reason="; ".join([choice.reason, *passed_over]))


def _choose_on_cpu(bundle: Bundle, precision: str | None, modalities: Sequence[str], why: str) -> Choice:
    asked = set(bundle.manifest.precisions if precision is None else [precision])
    if asked == {"bf16"} and openvino_installed():
        return Choice(OPENVINO, "bf16", "chosen because ONNX Runtime does not run bf16 on the CPU")
    if openvino_installed() and _openvino_is_faster(bundle, bundle.precision(precision), modalities):
        why = "chosen because OpenVINO is installed, and faster on the CPU with encoders so large"
        return Choice(OPENVINO, bundle.precision(precision), why)
    taken = _onnxruntime_precision(bundle, "ort-cpu", precision)
    return Choice("ort-cpu", taken, f"chosen because {why}")


def _openvino_is_faster(bundle: Bundle, precision: str, modalities: Sequence[str]) -> bool:
    """Whether it was measured to be faster than ONNX Runtime on such graphs and such a processor."""
    if platform.machine() not in ("x86_64", "AMD64") or (precision == "bf16" and not computes_bf16()):
        return False
    # Weights alone in int8 are not multiplied as such, and scales that are found on the way cost more than they gain.
    if precision == "int8" and bundle.manifest.precisions[precision].method != "static":
        return False
    return any(_numbers(bundle, modality, precision) >= _LARGE for modality in modalities)


def _numbers(bundle: Bundle, modality: str, precision: str) -> int:
    """Roughly how many numbers a graph holds."""
    graph = bundle.graph(modality, precision)
    files = [graph, graph.with_name(f"{graph.name}.data")]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return size // {"fp32": 4, "int8": 1}.get(precision, 2)


def _native_backends() -> Iterator[str]:
    """The native backends that this machine has what it needs for."""
    if compute_capability() is None or not _importable("cuda.bindings.runtime"):
        return
    for name, flavor in NATIVE.items():
        if _importable(MODULES[flavor]):
            yield name


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        return False


def _native_precision(bundle: Bundle, flavor: Flavor, options: BackendOptions, modalities: Sequence[str]) -> str:
    """The first precision, of those that may be taken, in which every modality has an engine that fits."""
    library = load_tensorrt(flavor)
    capability = compute_capability()
    if capability is None:
        raise BackendError(
            f"{library.name} needs an NVIDIA GPU and its driver, and there is none here; serve with ort-cpu."
        )
    first: BackendError | None = None
    for candidate in [options.precision] if options.precision is not None else _gpu_order(bundle):
        try:
            for modality in modalities:
                find_engine(
                    bundle.engines,
                    modality,
                    candidate,
                    flavor,
                    library.version,
                    capability,
                    bundle.graph_hash(modality, candidate),
                    library.cuda_major,
                    options.allow_host_code,
                )
            return candidate
        except BackendError as error:
            first = first or error
    assert first is not None
    raise first


def _onnxruntime_precision(bundle: Bundle, backend: str, precision: str | None) -> str:
    held = list(bundle.manifest.precisions)
    if backend != "ort-cpu":
        return precision or min(_gpu_order(bundle), key=lambda name: name == "bf16")
    runs = [name for name in held if name != "bf16"]
    if precision == "bf16" or not runs:
        raise BackendError(
            "bf16 does not run on the CPU provider of ONNX Runtime; "
            + (f"ask for {' or '.join(runs)}, " if runs else "export the run again with --precision fp32, ")
            + "ask for openvino (pip install 'fluxtalk[openvino]'), or serve on a GPU."
        )
    return precision or runs[0]


def _gpu_order(bundle: Bundle) -> list[str]:
    """A bundle's precisions, those first that a GPU is fastest in."""
    held = list(bundle.manifest.precisions)
    return sorted(held, key=lambda name: {"fp16": 0, "bf16": 1}.get(name, 2))
