"""Choice of the backend and the precision that run a bundle on this machine, with its reason."""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fluxtalk.artifacts.backend_times import BackendTimes, read_times
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.engine import Flavor, find_engine
from fluxtalk.devices.gpu import compute_capability
from fluxtalk.devices.tensorrt_api import MODULES, load_tensorrt
from fluxtalk.errors import BackendError
from fluxtalk.runtime.backends.measure import conditions_of
from fluxtalk.runtime.backends.onnxruntime_session import import_onnxruntime
from fluxtalk.runtime.backends.openvino_session import computes_bf16, openvino_installed
from fluxtalk.runtime.backends.options import AUTO, NATIVE, ON_CPU, OPENVINO, ORT_CPU, PROVIDERS, BackendOptions

_LARGE = 8_000_000
"""Numbers in a graph from which OpenVINO was measured to be faster (bench/latency/backends.py): the rule for graphs
that were not measured on this machine."""
_LEVEL = 1.03
"""Ratio of two times below which backends are level; ONNX Runtime is taken then, which takes less memory."""


@dataclass(frozen=True)
class BackendChoice:
    """Backends and precision that were chosen for a bundle."""

    backends: dict[str, str]
    """Modality to one of `BACKENDS` other than ``auto``."""
    precision: str
    reason: str
    """Reason for the choice, for people."""
    unmeasured: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Modality to its backends, for those that a rule chose because their times on this machine are not known."""

    @property
    def backend(self) -> str:
        """Backend of every modality; if they differ, all of them, for people."""
        taken = set(self.backends.values())
        return taken.pop() if len(taken) == 1 else ", ".join(f"{b} for {m}" for m, b in self.backends.items())


def choose(
    bundle: Bundle,
    options: BackendOptions,
    modalities: Sequence[str] | None = None,
    failed: Mapping[str, str] | None = None,
    measured: Mapping[str, BackendTimes] | None = None,
) -> BackendChoice:
    """Choose what runs a bundle on this machine.

    A named backend or precision is taken or refused. Backend ``auto`` takes the first of these that is installed and
    fits: native engines, if there is one for every modality; ONNX Runtime on CUDA, if there is a GPU; on the CPU, for
    each modality, the faster of ONNX Runtime and OpenVINO by the record of their times on this machine, and by a rule
    if there is none. Precision None takes fp16 on a GPU, else bf16, else the bundle's first (bf16 last in ONNX Runtime,
    whose providers lack operators for it); on the CPU the bundle's first that runs there.

    Args:
        options: what is asked for.
        modalities: modalities to load; None takes all.
        failed: backend to the reason why it did not start, for those that ``auto`` already tried.
        measured: modality to times that hold in place of a record.

    Raises:
        UsageError: the bundle does not hold the precision.
        BackendError: the named backend is missing, or does not run the bundle.
        ArtifactError: the record of an engine was changed.
    """
    backend, precision = options.backend, options.precision
    bundle.precision(precision)
    wanted = list(modalities) if modalities is not None else list(bundle.manifest.modalities)
    if backend in NATIVE:
        chosen = _native_precision(bundle, NATIVE[backend], options, wanted)
        return BackendChoice(dict.fromkeys(wanted, backend), chosen, "asked for by name")
    if backend == OPENVINO:
        return BackendChoice(dict.fromkeys(wanted, backend), bundle.precision(precision), "asked for by name")
    if backend != AUTO:
        taken = _onnxruntime_precision(bundle, backend, precision)
        return BackendChoice(dict.fromkeys(wanted, backend), taken, "asked for by name")
    return _choose_automatically(bundle, options, wanted, failed or {}, measured or {})


def _choose_automatically(
    bundle: Bundle,
    options: BackendOptions,
    modalities: Sequence[str],
    failed: Mapping[str, str],
    measured: Mapping[str, BackendTimes],
) -> BackendChoice:
    skipped = [f"{name} was passed over: {why}" for name, why in failed.items()]
    for name in _native_backends():
        if name in failed:
            continue
        try:
            chosen = _native_precision(bundle, NATIVE[name], options, modalities)
            reason = f"chosen because {bundle.engines} has engines for this GPU"
            return BackendChoice(dict.fromkeys(modalities, name), chosen, "; ".join([reason, *skipped]))
        except BackendError as error:
            skipped.append(f"{name} was passed over: {error}")
    # onnxruntime lists the providers that it was built with, on machines without a GPU too.
    has_cuda = PROVIDERS["ort-cuda"] in import_onnxruntime().get_available_providers()
    has_gpu = has_cuda and compute_capability() is not None
    if has_gpu and "ort-cuda" not in failed:
        taken = _onnxruntime_precision(bundle, "ort-cuda", options.precision)
        why = "chosen because this ONNX Runtime has CUDA"
        choice = BackendChoice(dict.fromkeys(modalities, "ort-cuda"), taken, why)
    else:
        missing = "CUDA does not start" if has_gpu else "there is no NVIDIA GPU here" if has_cuda else ""
        why = missing or "this ONNX Runtime has no CUDA"
        choice = _choose_on_cpu(bundle, options, modalities, failed, measured, why)
    return dataclasses.replace(choice, reason="; ".join([choice.reason, *skipped]))


def _choose_on_cpu(
    bundle: Bundle,
    options: BackendOptions,
    modalities: Sequence[str],
    failed: Mapping[str, str],
    measured: Mapping[str, BackendTimes],
    why: str,
) -> BackendChoice:
    asked = set(bundle.manifest.precisions if options.precision is None else [options.precision])
    has_openvino = openvino_installed() and OPENVINO not in failed
    if has_openvino and asked == {"bf16"}:
        why = "chosen because ONNX Runtime does not run bf16 on the CPU"
        return BackendChoice(dict.fromkeys(modalities, OPENVINO), "bf16", why)
    precision = bundle.precision(options.precision)
    if has_openvino and precision == "bf16" and any(_openvino_is_faster(bundle, precision, m) for m in modalities):
        why = "chosen because OpenVINO is installed, and this processor multiplies in bfloat16"
        return BackendChoice(dict.fromkeys(modalities, OPENVINO), precision, why)
    precision = _onnxruntime_precision(bundle, ORT_CPU, options.precision)
    candidates = ON_CPU if has_openvino else (ORT_CPU,)
    if len(candidates) < 2:
        return BackendChoice(dict.fromkeys(modalities, candidates[0]), precision, f"chosen because {why}")
    backends: dict[str, str] = {}
    reasons: list[str] = []
    unmeasured: dict[str, tuple[str, ...]] = {}
    for modality in modalities:
        times = measured.get(modality) or read_times(conditions_of(bundle, modality, precision, options))
        if times is None or not set(candidates) <= {*times.milliseconds, *times.left_out}:
            unmeasured[modality] = candidates
            backends[modality], by = _by_rule(bundle, precision, modality)
        else:
            backends[modality], by = _by_times(times)
        reasons.append(f"{modality}: {by}")
    return BackendChoice(backends, precision, "; ".join(reasons), unmeasured)


def _by_times(times: BackendTimes) -> tuple[str, str]:
    """Take the backend that was measured to be the fastest; say it with its time and the others'."""
    mean = {backend: times.mean(backend) for backend in times.milliseconds}
    fastest = min(mean, key=lambda backend: mean[backend])
    taken = ORT_CPU if ORT_CPU in mean and mean[ORT_CPU] <= _LEVEL * mean[fastest] else fastest
    others = [f"{ms:.2f} ms with {name}" for name, ms in mean.items() if name != taken]
    against = f" against {' and '.join(others)}" if others else ""
    barred = "".join(f"; {name} is left out: {why}" for name, why in times.left_out.items())
    return taken, f"{taken}, measured {mean[taken]:.2f} ms{against} ({times.measured}){barred}"


def _by_rule(bundle: Bundle, precision: str, modality: str) -> tuple[str, str]:
    """Take the backend that was faster with such graphs elsewhere."""
    if _openvino_is_faster(bundle, precision, modality):
        return OPENVINO, "openvino by rule: it is faster on most processors with encoders so large"
    return ORT_CPU, "ort-cpu by rule: on most machines it is at least as fast with such an encoder"


def _openvino_is_faster(bundle: Bundle, precision: str, modality: str) -> bool:
    """True if OpenVINO was measured to be faster than ONNX Runtime on such graphs and such a processor."""
    if platform.machine() not in ("x86_64", "AMD64") or (precision == "bf16" and not computes_bf16()):
        return False
    # Weight-only int8 is multiplied in float32, and finding dynamic scales costs OpenVINO more than int8 gains.
    if precision == "int8" and bundle.manifest.precisions[precision].method != "static":
        return False
    return _weight_count(bundle, modality, precision) >= _LARGE


def _weight_count(bundle: Bundle, modality: str, precision: str) -> int:
    """Estimate how many weights a graph holds, from the size of its files."""
    graph = bundle.graph(modality, precision)
    files = [graph, graph.with_name(f"{graph.name}.data")]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return size // {"fp32": 4, "int8": 1}.get(precision, 2)


def _native_backends() -> Iterator[str]:
    """Yield the native backends whose GPU, bindings and library are here."""
    if compute_capability() is None or not _importable("cuda.bindings.runtime"):
        return
    for name, flavor in NATIVE.items():
        if _importable(MODULES[flavor]):
            yield name


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _native_precision(bundle: Bundle, flavor: Flavor, options: BackendOptions, modalities: Sequence[str]) -> str:
    """Find the first acceptable precision in which every modality has an engine that fits.

    Raises:
        BackendError: there is none; it says what the first one lacks.
    """
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
    """Order a bundle's precisions, the fastest on a GPU first."""
    held = list(bundle.manifest.precisions)
    return sorted(held, key=lambda name: {"fp16": 0, "bf16": 1}.get(name, 2))
