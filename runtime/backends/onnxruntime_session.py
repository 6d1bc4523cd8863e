"""ONNX Runtime behind the `Session` seam: its CPU, CUDA and TensorRT providers."""

from __future__ import annotations

import contextlib
import importlib.metadata
import mmap
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.errors import BackendError, InputError, reason
from fluxtalk.runtime.backends.engine_shapes import Layout
from fluxtalk.runtime.backends.options import PROVIDERS
from fluxtalk.runtime.backends.session import Arrays, with_token_index
from fluxtalk.runtime.backends.threads import available_cores

_CUDA = {
    # Otherwise float32 is rounded to 10 bits before it is multiplied.
    "use_tf32": "0",
    # The default tries every algorithm again for each new shape.
    "cudnn_conv_algo_search": "HEURISTIC",
    # The default doubles what it holds each time it does not suffice.
    "arena_extend_strategy": "kSameAsRequested",
}


def import_onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        BackendError: neither of its two distributions is installed, or both are.
    """
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(installed) == 2:
        raise BackendError(
            "Both onnxruntime and onnxruntime-gpu are installed, and they overwrite each other's files; "
            "uninstall both, then install one: pip install 'fluxtalk[cpu]' or 'fluxtalk[gpu]'."
        )
    try:
        import onnxruntime
    except ImportError as error:
        if installed:
            raise BackendError(
                f"{installed[0]} is installed but cannot be imported ({error}); install it again."
            ) from None
        raise BackendError(
            "Neither onnxruntime nor onnxruntime-gpu is installed; "
            "pip install 'fluxtalk[cpu]', or 'fluxtalk[gpu]' for CUDA."
        ) from None
    return onnxruntime


def _data(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}.data")


@contextlib.contextmanager
def _weights_beside(graph: Path) -> Iterator[mmap.mmap | None]:
    """The file of a large graph's weights, for the session to copy.

    By itself ONNX Runtime maps the file for as long as it runs, and a file that is written over then changes every
    answer, or ends the process.
    """
    if not _data(graph).is_file():
        yield None
        return
    with _data(graph).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as weights:
        yield weights


class OnnxRuntimeSession:
    """One graph on one execution provider of ONNX Runtime.

    Args:
        graph: the ONNX file.
        backend: ``ort-cpu``, ``ort-cuda`` or ``ort-tensorrt``.
        threads: for one operator; None takes the cores that are available to this process.
        precision: of the graph.
        engines: for ``ort-tensorrt``, the folder of this graph's compiled engines and timings, made where it is
            missing; they do not know of each other's graphs, so every graph has its own.
        layout: for ``ort-tensorrt``, the inputs and the one profile that is compiled. Without these two, the provider
            compiles again for every shape beyond those it has met, and keeps nothing.
        spinning: threads burn their core while they wait for work, which is faster where the cores are ours alone, and
            slower where they are not.

    Raises:
        BackendError: ONNX Runtime or the provider is missing, does not start, or refuses the graph.
    """

    def __init__(
        self,
        graph: Path,
        backend: str = "ort-cpu",
        threads: int | None = None,
        precision: str = "fp32",
        engines: Path | None = None,
        layout: Layout | None = None,
        spinning: bool = True,
    ) -> None:
        ort = import_onnxruntime()
        provider = PROVIDERS[backend]
        if provider not in ort.get_available_providers():
            raise BackendError(
                f"The backend {backend} needs ONNX Runtime's {provider}, and this installation has only "
                f"{', '.join(ort.get_available_providers())}; install fluxtalk[gpu] instead of fluxtalk[cpu], "
                "or ask for ort-cpu."
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if backend == "ort-cpu":
            # What one large batch needed would be kept for ever, and costs no time to ask for again.
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
        elif hasattr(ort, "preload_dlls"):
            # CUDA, cuDNN and their kind from their Python packages, where they are installed. What is missing is
            # printed, and standard output is for answers.
            with contextlib.redirect_stdout(sys.stderr):
                ort.preload_dlls()
        try:
            with _weights_beside(graph) as weights:
                if weights is not None and backend != "ort-tensorrt":  # which reads by the path, into its engine
                    options.add_external_initializers_from_files_in_memory(
                        [_data(graph).name], [weights], [len(weights)]
                    )
                self._session = ort.InferenceSession(
                    str(graph),
                    options,
                    providers=_providers(backend, precision, engines, layout),
                    enable_fallback=0,
                )
        except Exception as error:  # ONNX Runtime's exceptions have no public base
            raise BackendError(f"ONNX Runtime cannot load {graph} on {backend}: {reason(error)}.") from None
        # A provider that cannot start is left out with a mere warning. (To forbid the CPU altogether would refuse
        # every graph with a dynamic shape: arithmetic on shapes belongs there.)
        if self._session.get_providers()[0] != provider:
            raise BackendError(
                f"ONNX Runtime could not start {provider} for the backend {backend}, and took "
                f"{', '.join(self._session.get_providers())}: usually a library of CUDA, cuDNN or TensorRT is missing "
                "or of another version, which its messages above name; install that, or ask for another backend."
            )
        self._backend = backend
        self._version = ort.__version__
        self._threads = options.intra_op_num_threads
        self._layout = layout if backend == "ort-tensorrt" else None

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`. More rows than an engine of ``ort-tensorrt`` takes are run in parts.

        Raises:
            InputError: the graph does not take the inputs.
            BackendError: ONNX Runtime or its device failed, or the session was closed.
        """
        if self._layout is None:
            return self._run(inputs, k, outputs)
        parts = []
        for rows in self._layout.parts(self._layout.sizes(with_token_index(inputs, k))):
            parts.append(self._run({name: array[rows] for name, array in inputs.items()}, k, outputs))
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    @property
    def max_length(self) -> int | None:
        """The longest input that it was compiled for; None where nothing is compiled, or inputs have no length."""
        profiles = self._layout.profiles if self._layout is not None else ()
        return max((p["length"][2] for p in profiles if "length" in p), default=None)

    def describe(self) -> str:
        """See `Session.describe`."""
        return f"{self._backend} (ONNX Runtime {self._version}, {self._threads} threads)"

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None

    def _run(self, inputs: Arrays, k: int, outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        try:
            values = self._session.run(outputs, with_token_index(inputs, k))
        except Exception as error:  # as above
            if self._session is None:
                raise BackendError("This session was closed; load the bundle again.") from None
            if type(error).__name__ == "InvalidArgument":
                raise InputError(f"ONNX Runtime cannot run the graph with these inputs: {reason(error)}.") from error
            raise BackendError(f"ONNX Runtime failed while it ran the graph: {reason(error)}.") from error
        return dict(zip(outputs, values, strict=True))


def _providers(backend: str, precision: str, engines: Path | None, layout: Layout | None) -> list[Any]:
    """The providers of a session in order, each with its options where it has any."""
    if backend == "ort-cpu":
        return [PROVIDERS["ort-cpu"]]
    cuda = (PROVIDERS["ort-cuda"], dict(_CUDA))
    if backend == "ort-cuda":
        return [cuda]
    options: dict[str, str] = {}
    if precision in ("fp16", "bf16"):
        options[f"trt_{precision}_enable"] = "True"
        options["trt_layer_norm_fp32_fallback"] = "True"
    elif precision == "int8":
        options["trt_int8_enable"] = "True"
    if engines is not None:
        engines.mkdir(parents=True, exist_ok=True)
        for cache in ("engine", "timing"):
            options[f"trt_{cache}_cache_enable"] = "True"
            options[f"trt_{cache}_cache_path"] = str(engines)
    if layout is not None:
        profile = layout.profiles[0]
        for place, name in enumerate(("min", "opt", "max")):
            sizes = {axis: triple[place] for axis, triple in profile.items()}
            options[f"trt_profile_{name}_shapes"] = ",".join(
                f"{n}:{'x'.join(map(str, tensor.shape(sizes)))}" for n, tensor in layout.inputs.items()
            )
    # What TensorRT does not take runs on CUDA.
    return [(PROVIDERS["ort-tensorrt"], options), cuda]


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
