"""`examine`: every backend and precision of a bundle tried on this machine, with this installation."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.devices.gpu import compute_capability
from fluxtalk.errors import BackendError, FluxTalkError
from fluxtalk.runtime.backends.choose import Choice, choose
from fluxtalk.runtime.backends.options import BACKENDS, OPENVINO, BackendOptions
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.runtime.doctor.advice import Goal, Recommendation, faster, fastest, recommend
from fluxtalk.runtime.doctor.trial import Trial, apart, attempt, refusals


@dataclass(frozen=True)
class Diagnosis:
    """What was found."""

    bundle: Bundle
    machine: str
    trials: list[Trial]
    refused: dict[str, dict[str, str]]
    """Backend to precision to why it does not run."""
    auto: Choice | None
    """What serving takes where nothing is named; None where it finds nothing."""
    recommendation: Recommendation | None
    because: str
    """Why that, or why nothing, in a sentence."""
    faster: list[str]

    @property
    def broken(self) -> list[Trial]:
        """Those that break what their precision promises."""
        return [trial for trial in self.trials if trial.broken]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "bundle_hash": self.bundle.manifest.bundle_hash,
            "machine": self.machine,
            "holds": not self.broken,
            "trials": [trial.to_dict() for trial in self.trials],
            "refused": self.refused,
            "auto": asdict(self.auto) if self.auto is not None else None,
            "recommendation": asdict(self.recommendation) if self.recommendation is not None else None,
            "because": self.because,
            "faster": self.faster,
        }


def examine(
    folder: Path,
    goal: Goal,
    backends: Sequence[str] = BACKENDS[1:],
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Try a bundle on every backend in every precision, and recommend one with a k.

    Args:
        goal: what the recommendation has to satisfy.
        backends: to try; ``auto`` is none.
        threads: for one operator on the CPU; None takes the available cores.
        say: told what is being tried.

    Raises:
        BundleError: the bundle is missing, foreign or was changed.
        BackendError: none of the backends runs it.
    """
    bundle = read_bundle(folder)
    trials: list[Trial] = []
    refused: dict[str, dict[str, str]] = {}
    for backend in backends:
        say(backend)
        _try(bundle, backend, threads, trials, refused)
    if not trials:
        raise BackendError(
            f"No backend runs {folder} here: " + " ".join(next(iter(whys.values())) for whys in refused.values())
        )
    recommendation, because = recommend(bundle, trials, goal)
    auto = _auto(bundle)
    one_thread = _on_one_thread(bundle, trials, threads)
    return Diagnosis(
        bundle,
        f"{platform.system()} {platform.machine()}, {available_cores()} of {os.cpu_count()} cores",
        trials,
        refused,
        auto,
        recommendation,
        because,
        faster(bundle, trials, refused, one_thread, auto, available_cores(), compute_capability()),
    )


def _try(
    bundle: Bundle, backend: str, threads: int | None, trials: list[Trial], refused: dict[str, dict[str, str]]
) -> None:
    held = list(bundle.manifest.precisions)
    try:
        why_not = apart(refusals, bundle.folder, backend, held, threads)
    except BackendError as error:
        why_not = dict.fromkeys(held, str(error))
    for precision in held:
        if precision in why_not:
            continue
        try:
            trials.append(apart(attempt, bundle.folder, backend, precision, threads))
        except FluxTalkError as error:
            why_not[precision] = str(error)
    if why_not:
        refused[backend] = why_not


def _on_one_thread(bundle: Bundle, trials: Sequence[Trial], threads: int | None) -> Trial | None:
    """The fastest trial again, where it ran on more than one thread of the CPU."""
    best = fastest(trials)
    if best is None or best.backend not in ("ort-cpu", OPENVINO) or (threads or available_cores()) == 1:
        return None
    return apart(attempt, bundle.folder, best.backend, best.precision, 1)


def _auto(bundle: Bundle) -> Choice | None:
    try:
        return choose(bundle, BackendOptions())
    except FluxTalkError:
        return None
