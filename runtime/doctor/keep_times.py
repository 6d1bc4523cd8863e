"""Times of the CPU's backends side by side, kept for ``--backend auto``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from fluxtalk.artifacts.backend_times import write_times
from fluxtalk.artifacts.bundle import read_bundle
from fluxtalk.runtime.backends.measure import AT_LEISURE_S, conditions_of, measure
from fluxtalk.runtime.backends.open_sessions import open_session
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.doctor.trial import Trial

_UNSOUND = "it does not reproduce the golden vectors here"


def comparable(trials: Sequence[Trial], backends: Sequence[str]) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Find the precisions in which several backends were tried: those that hold parity, and those that do not."""
    found = {}
    for precision in dict.fromkeys(trial.precision for trial in trials):
        tried = [trial for trial in trials if trial.precision == precision and trial.backend in backends]
        sound = [trial.backend for trial in tried if not trial.broken]
        if sound and len(tried) > 1:
            found[precision] = (sound, {trial.backend: _UNSOUND for trial in tried if trial.broken})
    return found


def keep_times(
    folder: Path, precision: str, backends: Sequence[str], left_out: Mapping[str, str], threads: int | None
) -> None:
    """Time backends side by side in one precision, as libraries and as servers run them, and keep the times.

    Args:
        left_out: backend that must not be taken to the reason why.
        threads: threads of one operator; None takes the available cores.

    Raises:
        FluxTalkError: a session does not open or run.
    """
    bundle = read_bundle(folder, check_hashes=False)
    for spinning in (True, False):
        options = BackendOptions(threads=threads, spinning=spinning)
        for modality in bundle.manifest.modalities:
            with ExitStack() as opened:
                sessions = {}
                for name in backends:
                    named = dataclasses.replace(options, backend=name, precision=precision)
                    sessions[name] = open_session(bundle, modality, named)
                    opened.callback(sessions[name].close)
                times = measure(bundle, modality, sessions, AT_LEISURE_S)
            conditions = conditions_of(bundle, modality, precision, options)
            write_times(conditions, dataclasses.replace(times, left_out=dict(left_out)))
