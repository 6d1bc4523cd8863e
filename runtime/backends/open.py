"""Every session of a bundle, on what was asked for; or, where nothing was, on the first backend that starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.errors import BackendError
from fluxtalk.runtime.backends.choose import Choice, choose, open_session
from fluxtalk.runtime.backends.options import AUTO, NATIVE, BackendOptions
from fluxtalk.runtime.backends.session import Session

_ON_GPU = (*NATIVE, "ort-cuda")


def open_sessions(
    bundle: Bundle,
    modalities: Sequence[str],
    options: BackendOptions,
) -> tuple[Choice, dict[str, Session]]:
    """Choose what runs a bundle, and open a session for each modality.

    Args:
        options: a backend that is named starts, or is refused. For ``auto``, what does not start on the GPU is passed
            over, and the choice's reason says so: that a library was built for CUDA does not tell whether CUDA's
            are here.

    Returns:
        What was chosen, and modality to its session.

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
