"""`OnnxRuntimeSession`: a graph on the CPU, CUDA or TensorRT provider of ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib.metadata
import mmap
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.arrays import Arrays, Floats
from fluxtalk.artifacts.bundle import OUTPUTS
from fluxtalk.errors import BackendError, InputError, reason
from fluxtalk.runtime.backends.engine_shapes import EngineInputs
from fluxtalk.runtime.backends.options import PROVIDERS
from fluxtalk.runtime.backends.session import with_token_index
from fluxtalk.runtime.backends.threads import available_cores

_CUDA = {
    # TF32 would round float32 to 10 bits before it is multiplied.
    "use_tf32": "0",
    # The default tries every algorithm for each new shape.
    "cudnn_conv_algo_search": "HEURISTIC",
    # The default doubles the arena each time it is full.
    "arena_extend_strategy": "kSameAsRequested",
}

_SLOWER = ("SkipLayerNormFusion",)
"""Optimizers that are off on a CPU: ONNX Runtime's fused addition and normalization takes thrice the time of both."""
_KEPT_POSITIONS = 8192
"""Positions of the largest batch whose memory is kept for the next one: 128 texts of 64 tokens, 55 images of 224 px."""
_NUMBERS_OF_A_POSITION = 1024
"""Numbers of pixels, samples or features that cost an encoder about as much memory as one token."""


def import_onnxruntime() -> Any:
    """Import onnxruntime.

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


def _weights_file(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}.data")


@contextlib.contextmanager
def _external_weights(graph: Path) -> Iterator[mmap.mmap | None]:
    """Map the file of a large graph's weights while the session copies it; None if the graph holds its own.

    By itself ONNX Runtime keeps the file mapped, and overwriting it would change every answer or end the process.
    """
    if not _weights_file(graph).is_file():
        yield None
        return
    with _weights_file(graph).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as weights:
        yield weights


class OnnxRuntimeSession:
    """One graph on one execution provider of ONNX Runtime.

    Args:
        graph: ONNX file.
        backend: ``ort-cpu``, ``ort-cuda`` or ``ort-tensorrt``.
        threads: threads of one operator; None takes the cores that are available to this process.
        precision: precision of the graph.
        engines: folder for what ``ort-tensorrt`` compiles, made if it is missing. Each graph needs its own: a compiled
            engine does not say which graph it is of.
        engine_inputs: inputs and the one profile that ``ort-tensorrt`` compiles. Without these two, it compiles again
            for every new range of shapes, and keeps nothing.
        spinning: let threads burn their core while they wait for work: faster if no other program needs the cores.

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
        engine_inputs: EngineInputs | None = None,
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
            # Patterns would be kept for every shape of a batch.
            options.enable_mem_pattern = False
        elif hasattr(ort, "preload_dlls"):
            # Load CUDA and cuDNN from their Python packages. It prints what is missing, and standard output is for
            # answers.
            with contextlib.redirect_stdout(sys.stderr):
                ort.preload_dlls()
        try:
            with _external_weights(graph) as weights:
                if weights is not None and backend != "ort-tensorrt":  # TensorRT reads the file by its path
                    options.add_external_initializers_from_files_in_memory(
                        [_weights_file(graph).name], [weights], [len(weights)]
                    )
                self._session = ort.InferenceSession(
                    str(graph),
                    options,
                    providers=_providers(backend, precision, engines, engine_inputs),
                    enable_fallback=0,
                    disabled_optimizers=_SLOWER if backend == "ort-cpu" else None,
                )
        except Exception as error:  # ONNX Runtime's exceptions have no public base
            raise BackendError(f"ONNX Runtime cannot load {graph} on {backend}: {reason(error)}.") from None
        # A provider that cannot start is left out with no more than a warning. (Forbidding the CPU provider would
        # refuse every graph with a dynamic shape: arithmetic on shapes runs there.)
        if self._session.get_providers()[0] != provider:
            raise BackendError(
                f"ONNX Runtime could not start {provider} for the backend {backend}, and took "
                f"{', '.join(self._session.get_providers())}: usually a library of CUDA, cuDNN or TensorRT is missing "
                "or of another version, which its messages above name; install that, or ask for another backend."
            )
        self.backend: str = backend
        self._version = ort.__version__
        self._threads = options.intra_op_num_threads
        self._engine_inputs = engine_inputs if backend == "ort-tensorrt" else None
        self._releasing = None
        if backend == "ort-cpu":
            # The arena would keep what the largest batch needed for as long as the process lives.
            self._releasing = ort.RunOptions()
            self._releasing.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, Floats]:
        """Run the graph as `Session.run` says; more rows than ``ort-tensorrt`` compiles for are run in parts.

        Raises:
            InputError: the graph does not take the inputs.
            BackendError: ONNX Runtime or its device failed, or the session was closed.
        """
        if self._engine_inputs is None:
            return self._run(inputs, k, outputs)
        parts = []
        for rows in self._engine_inputs.parts(self._engine_inputs.sizes(with_token_index(inputs, k))):
            parts.append(self._run({name: array[rows] for name, array in inputs.items()}, k, outputs))
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    @property
    def max_length(self) -> int | None:
        """Length of the longest input that ``ort-tensorrt`` compiled for; None if there is no such limit."""
        profiles = self._engine_inputs.profiles if self._engine_inputs is not None else ()
        return max((p["length"][2] for p in profiles if "length" in p), default=None)

    def describe(self) -> str:
        return f"{self.backend} (ONNX Runtime {self._version}, {self._threads} threads)"

    def close(self) -> None:
        self._session = None

    def _run(self, inputs: Arrays, k: int, outputs: Sequence[str]) -> dict[str, Floats]:
        releasing = self._releasing if _positions(inputs) > _KEPT_POSITIONS else None
        try:
            values = self._session.run(outputs, with_token_index(inputs, k), releasing)
        except Exception as error:  # ONNX Runtime's exceptions have no public base
            if self._session is None:
                raise BackendError("This session was closed; load the bundle again.") from None
            if type(error).__name__ == "InvalidArgument":
                raise InputError(f"ONNX Runtime cannot run the graph with these inputs: {reason(error)}.") from error
            raise BackendError(f"ONNX Runtime failed while it ran the graph: {reason(error)}.") from error
        return dict(zip(outputs, values, strict=True))


def _positions(inputs: Arrays) -> int:
    """Count the positions of a batch, by which its memory is estimated."""
    sizes = (a.size if a.dtype.kind in "iu" else a.size // _NUMBERS_OF_A_POSITION for a in inputs.values())
    return max(sizes, default=0)


def _providers(backend: str, precision: str, engines: Path | None, engine_inputs: EngineInputs | None) -> list[Any]:
    """List the providers of a session in order, with their options."""
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
    if engine_inputs is not None:
        profile = engine_inputs.profiles[0]
        for place, name in enumerate(("min", "opt", "max")):
            sizes = {axis: triple[place] for axis, triple in profile.items()}
            options[f"trt_profile_{name}_shapes"] = ",".join(
                f"{n}:{'x'.join(map(str, tensor.shape(sizes)))}" for n, tensor in engine_inputs.tensors.items()
            )
    # Operators that TensorRT does not take run on CUDA.
    return [(PROVIDERS["ort-tensorrt"], options), cuda]


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
