"""Opening a bundle's sessions: on the named backend, or with ``auto`` on the first that starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.engine import default_profile
from fluxtalk.errors import BackendError
from fluxtalk.runtime.backends.choose import BackendChoice, choose
from fluxtalk.runtime.backends.engine_shapes import EngineInput, EngineInputs
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.backends.openvino_session import OpenVinoSession
from fluxtalk.runtime.backends.options import AUTO, NATIVE, OPENVINO, BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.backends.tensorrt_session import TensorRTSession

_ON_GPU = (*NATIVE, "ort-cuda")


def open_sessions(
    bundle: Bundle,
    modalities: Sequence[str],
    options: BackendOptions,
) -> tuple[BackendChoice, dict[str, Session]]:
    """Choose a backend as `choose` does, and open a session for each modality.

    ``auto`` skips a GPU's backend that does not start, and the choice's reason says so: that a library was built for
    CUDA does not tell whether CUDA is here.

    Returns:
        the choice, and modality to its session.

    Raises:
        UsageError, BackendError, ArtifactError: as for `choose` and `open_session`.
    """
    failed: dict[str, str] = {}
    while True:
        choice = choose(bundle, options, modalities, failed)
        chosen = dataclasses.replace(options, backend=choice.backend, precision=choice.precision)
        try:
            with ExitStack() as opening:
                sessions: dict[str, Session] = {}
                for modality in modalities:
                    sessions[modality] = open_session(bundle, modality, chosen)
                    opening.callback(sessions[modality].close)
                opening.pop_all()
                return choice, sessions
        except BackendError as error:
            if options.backend != AUTO or choice.backend not in _ON_GPU:
                raise
            failed[choice.backend] = str(error)


def open_session(bundle: Bundle, modality: str, options: BackendOptions) -> Session:
    """Open one modality's session.

    Args:
        options: their backend is not ``auto``; precision None is the bundle's first.

    Raises:
        BackendError: the backend is missing, or refuses the graph or engine.
        ArtifactError: the engine or its record was changed.
    """
    backend, precision = options.backend, bundle.precision(options.precision)
    if backend in NATIVE:
        return TensorRTSession(bundle, modality, precision, NATIVE[backend], allow_host_code=options.allow_host_code)
    graph = bundle.graph(modality, precision)
    if backend == OPENVINO:
        hides_padding = not bundle.preprocess(modality).fixed_length
        longest = bundle.manifest.modalities[modality].max_length
        return OpenVinoSession(graph, options.threads, precision, hides_padding, longest)
    if backend != "ort-tensorrt":
        return OnnxRuntimeSession(graph, backend, options.threads, precision, spinning=options.spinning)
    engines = bundle.engines / "ort-tensorrt" / bundle.graph_hash(modality, precision)[:16]
    inputs = compiled_inputs(bundle, modality)
    return OnnxRuntimeSession(graph, backend, options.threads, precision, engines, inputs, options.spinning)


def compiled_inputs(bundle: Bundle, modality: str) -> EngineInputs:
    """Describe the inputs and the one profile that ONNX Runtime's TensorRT provider compiles a modality for."""
    inputs = {
        spec.name: EngineInput(np.dtype(spec.dtype), tuple(spec.shape))
        for spec in bundle.manifest.modalities[modality].inputs
    }
    return EngineInputs(modality, inputs, [default_profile(bundle.manifest, modality)])
