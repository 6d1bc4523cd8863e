"""Opening a bundle's sessions: on the named backend, or with ``auto`` on the fastest that starts."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from fluxtalk.artifacts.backend_times import BackendTimes, write_times
from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.artifacts.engine import default_profile
from fluxtalk.errors import BackendError, FluxTalkError
from fluxtalk.runtime.backends.choose import BackendChoice, choose
from fluxtalk.runtime.backends.engine_shapes import EngineInput, EngineInputs
from fluxtalk.runtime.backends.measure import conditions_of, measure, seconds_left, why_unmeasured
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.backends.openvino_session import OpenVinoSession
from fluxtalk.runtime.backends.options import AUTO, NATIVE, OPENVINO, BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.backends.tensorrt_session import TensorRTSession

_ON_GPU = (*NATIVE, "ort-cuda")

log = logging.getLogger("fluxtalk.backends")


def open_sessions(
    bundle: Bundle,
    modalities: Sequence[str],
    options: BackendOptions,
    choice: BackendChoice | None = None,
    measures: bool = True,
) -> tuple[BackendChoice, dict[str, Session]]:
    """Choose backends as `choose` does, and open a session for each modality.

    ``auto`` skips a backend that does not start if there is another, and the choice's reason says so: that a library
    was built for CUDA does not tell whether CUDA is here. Backends whose times for a graph are not known on this
    machine are measured, for about a second, and the times kept for the next start.

    Args:
        choice: a choice that was made before, to be opened as it is.
        measures: False to measure nothing: a rule chooses if no times are known.

    Returns:
        the choice, and modality to its session.

    Raises:
        UsageError, BackendError, ArtifactError: as for `choose` and `open_session`.
    """
    failed: dict[str, str] = {}
    measured: dict[str, BackendTimes] = {}
    tried: set[str] = set()
    opened = _Opened(bundle, options)
    try:
        while True:
            taken = choice or choose(bundle, options, modalities, failed, measured)
            opened.keep(taken, measured)
            unknown = [m for m in taken.unmeasured if m not in tried] if measures and choice is None else []
            try:
                if unknown:
                    times = opened.compare(unknown[0], taken)
                    tried.add(unknown[0])
                    measured |= {unknown[0]: times} if times is not None else {}
                    continue
                return taken, opened.take(modalities, taken)
            except _OpeningError as error:
                spare = error.backend in _ON_GPU or (error.backend == OPENVINO and taken.precision != "bf16")
                if options.backend != AUTO or choice is not None or not spare:
                    raise error.why from None
                failed[error.backend] = str(error.why)
    finally:
        opened.close()


def decide(folder: Path, modalities: Sequence[str], options: BackendOptions) -> BackendChoice:
    """Choose as `open_sessions` does, for other processes that are to open the same.

    Raises:
        FluxTalkError: as for `open_sessions`.
    """
    choice, sessions = open_sessions(read_bundle(folder, check_hashes=False), modalities, options)
    for session in sessions.values():
        session.close()
    return choice


class _OpeningError(Exception):
    """Raised if a backend does not start."""

    def __init__(self, backend: str, why: BackendError) -> None:
        super().__init__(str(why))
        self.backend = backend
        self.why = why


class _Opened:
    """Sessions that are open while it is decided which of them are taken."""

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self._bundle = bundle
        self._options = options
        self._sessions: dict[tuple[str, str], Session] = {}

    def compare(self, modality: str, choice: BackendChoice) -> BackendTimes | None:
        """Measure the backends of a modality, and keep the times for the next start; None if that cannot be done.

        Raises:
            _OpeningError: one does not start.
        """
        precision = choice.precision
        why_not = why_unmeasured(self._bundle.graph(modality, precision))
        if why_not is None:
            begin = time.perf_counter()
            sessions = {name: self._open(modality, name, precision) for name in choice.unmeasured[modality]}
            log.info("measuring %s for %s, once on this machine", " and ".join(sessions), modality)
            try:
                times = measure(self._bundle, modality, sessions, seconds_left(time.perf_counter() - begin))
            except FluxTalkError as error:
                why_not = str(error)
            else:
                write_times(conditions_of(self._bundle, modality, precision, self._options), times)
                return times
        log.info(
            "the backends of %s are not measured (%s): a rule chooses, and `fluxtalk doctor` measures",
            *(modality, why_not.rstrip(".")),
        )
        return None

    def keep(self, choice: BackendChoice, modalities: Collection[str]) -> None:
        """Close the sessions of some modalities that were not chosen."""
        for key in [key for key in self._sessions if key[0] in modalities and choice.backends[key[0]] != key[1]]:
            self._sessions.pop(key).close()

    def take(self, modalities: Sequence[str], choice: BackendChoice) -> dict[str, Session]:
        """Open what was chosen and is not open, and give it away.

        Raises:
            _OpeningError: one does not start.
        """
        for modality in modalities:
            self._open(modality, choice.backends[modality], choice.precision)
        return {modality: self._sessions.pop((modality, choice.backends[modality])) for modality in modalities}

    def close(self) -> None:
        """Close what nobody took."""
        with ExitStack() as closing:
            for session in self._sessions.values():
                closing.callback(session.close)
            self._sessions = {}

    def _open(self, modality: str, backend: str, precision: str) -> Session:
        if (modality, backend) not in self._sessions:
            options = dataclasses.replace(self._options, backend=backend, precision=precision)
            try:
                self._sessions[modality, backend] = open_session(self._bundle, modality, options)
            except BackendError as error:
                raise _OpeningError(backend, error) from error
        return self._sessions[modality, backend]


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
        tokens = bundle.manifest.num_register_tokens
        return OpenVinoSession(graph, options.threads, precision, hides_padding, longest, tokens)
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
