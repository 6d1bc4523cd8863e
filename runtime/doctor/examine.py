"""`examine`: try every backend and precision of a bundle on this machine, and recommend one."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.devices.gpu import compute_capability
from fluxtalk.errors import BackendError, FluxTalkError
from fluxtalk.runtime.backends.choose import BackendChoice, choose
from fluxtalk.runtime.backends.options import AUTO, BACKENDS, ON_CPU, BackendOptions
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.runtime.doctor.advice import Goal, Recommendation, fastest, recommend, speed_advice
from fluxtalk.runtime.doctor.keep_times import comparable, keep_times
from fluxtalk.runtime.doctor.trial import Trial, find_refusals, in_subprocess, run_trial

EVERY_BACKEND = tuple(BackendOptions(name) for name in BACKENDS if name != AUTO)


@dataclass(frozen=True)
class Diagnosis:
    """Result of `examine`."""

    bundle: Bundle
    machine: str
    """System, processor and cores, for people."""
    trials: list[Trial]
    refused: dict[str, dict[str, str]]
    """Backend to precision to the reason why it does not run."""
    auto: BackendChoice | None
    """Choice of ``--backend auto``; None if it finds nothing."""
    recommendation: Recommendation | None
    because: str
    """Sentence on why that is recommended, or why nothing is."""
    faster: list[str]
    """Sentences on what would make it faster."""

    @property
    def broken(self) -> list[Trial]:
        """Trials that exceed a tolerance of their precision."""
        return [trial for trial in self.trials if trial.broken]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types, for JSON."""
        return {
            "bundle_hash": self.bundle.manifest.bundle_hash,
            "machine": self.machine,
            "holds": not self.broken,
            "trials": [trial.to_dict() for trial in self.trials],
            "refused": self.refused,
            "auto": {"backend": self.auto.backend, **asdict(self.auto)} if self.auto is not None else None,
            "recommendation": asdict(self.recommendation) if self.recommendation is not None else None,
            "because": self.because,
            "faster": self.faster,
        }


def examine(
    folder: Path,
    goal: Goal,
    backends: Sequence[BackendOptions] = EVERY_BACKEND,
    on_backend: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Try a bundle on backends in every precision, recommend one with a k, and keep the times of the CPU's backends.

    Args:
        goal: limits that the recommendation has to keep.
        backends: backends to try, by name; their ``precision`` is not looked at.
        on_backend: called with each backend's name before it is tried.

    Raises:
        BundleError: the bundle is missing, foreign or was changed.
        BackendError: none of the backends runs it.
    """
    bundle = read_bundle(folder)
    trials: list[Trial] = []
    refused: dict[str, dict[str, str]] = {}
    for options in backends:
        on_backend(options.backend)
        done, refusals = _try(bundle, options)
        trials += done
        if refusals:
            refused[options.backend] = refusals
    if not trials:
        raise BackendError(
            f"No backend runs {folder} here: " + " ".join(next(iter(whys.values())) for whys in refused.values())
        )
    threads = backends[0].threads
    for precision, (sound, unsound) in comparable(trials, ON_CPU).items():
        on_backend(f"{' beside '.join(sound)} in {precision}, for --backend auto")
        in_subprocess(keep_times, folder, precision, sound, unsound, threads)
    recommendation, because = recommend(bundle, trials, goal)
    auto, one_thread, cores = _choose_unasked(bundle, threads), _try_on_one_thread(bundle, trials), available_cores()
    return Diagnosis(
        bundle,
        f"{platform.system()} {platform.machine()}, {cores} of {os.cpu_count()} cores",
        trials,
        refused,
        auto,
        recommendation,
        because,
        speed_advice(bundle, trials, refused, one_thread, auto, cores, compute_capability()),
    )


def _try(bundle: Bundle, options: BackendOptions) -> tuple[list[Trial], dict[str, str]]:
    """Try a backend in every precision; return the trials, and precision to the reason why there is none."""
    precisions = list(bundle.manifest.precisions)
    try:
        refusals = in_subprocess(find_refusals, bundle.folder, options, precisions)
    except BackendError as error:
        return [], dict.fromkeys(precisions, str(error))
    trials = []
    for precision in (name for name in precisions if name not in refusals):
        try:
            chosen = dataclasses.replace(options, precision=precision)
            trials.append(in_subprocess(run_trial, bundle.folder, chosen))
        except FluxTalkError as error:
            refusals[precision] = str(error)
    return trials, refusals


def _try_on_one_thread(bundle: Bundle, trials: Sequence[Trial]) -> Trial | None:
    """Repeat the fastest trial on one thread; None if it did not run on several threads of the CPU."""
    best = fastest(trials)
    if best is None or best.backend not in ON_CPU or (best.threads or available_cores()) == 1:
        return None
    return in_subprocess(run_trial, bundle.folder, BackendOptions(best.backend, best.precision, threads=1))


def _choose_unasked(bundle: Bundle, threads: int | None) -> BackendChoice | None:
    try:
        return choose(bundle, BackendOptions(threads=threads))
    except FluxTalkError:
        return None
