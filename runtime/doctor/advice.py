"""Recommendation and advice, from the trials' measurements and the bundle's recall curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxtalk.arrays import vector_bytes
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.runtime.backends.choose import BackendChoice
from fluxtalk.runtime.doctor.trial import Trial
from fluxtalk.scoring.parity import PRECISIONS
from fluxtalk.tokens import CONCAT

RecallCurve = dict[int, float]
"""k to its share of the full recall, in the direction that loses most."""


@dataclass(frozen=True)
class Goal:
    """Limits on a recommendation; None is no limit."""

    recall: float | None = None
    """Smallest share of the full recall: that of all tokens in the most exact precision."""
    budget_ms: float | None = None
    """Most milliseconds of one item in the session, at the longest input that was timed."""
    bytes: int | None = None
    """Most bytes of an item's overlapping tokens, side by side in float32."""


@dataclass(frozen=True)
class Recommendation:
    """Backend, precision and k to serve with, and what they cost."""

    backend: str
    precision: str
    k: int
    ms: float
    """Milliseconds of one item at the longest input that was timed, in the slowest modality."""
    recall_share: float | None
    """Share of the full recall; None if the bundle has no curve."""
    bytes: int
    """Bytes of an item's overlapping tokens, side by side in float32."""


def recommend(bundle: Bundle, trials: Sequence[Trial], goal: Goal) -> tuple[Recommendation | None, str]:
    """Choose the fastest setting within the goal, among trials that hold parity.

    Without a goal for recall, the best recall comes first, then time.

    Returns:
        the recommendation, or None; and a sentence that says why.
    """
    sound = [trial for trial in trials if not trial.broken]
    if not sound:
        return None, "Nothing is recommended: no backend reproduces the golden vectors."
    curves = recall_curves(bundle)
    layout = bundle.manifest.layout
    found: list[Recommendation] = []
    for trial in sound:
        curve = curves.get(trial.precision, {})
        for k in sorted({cell.k for cell in trial.latency}):
            size = vector_bytes(layout.select(k, CONCAT).values_per_item, "float32")
            found.append(Recommendation(trial.backend, trial.precision, k, trial.ms(k), curve.get(k), size))
    if goal.recall is not None and not any(one.recall_share is not None for one in found):
        return None, (
            "Nothing is recommended for a recall: the bundle has no recall curve, because it was exported without "
            "held-out pairs; export the run again with --eval-data."
        )
    reached = [one for one in found if _reaches(one, goal)]
    if not reached:
        return None, f"Nothing reaches {_describe(goal)}: {_nearest(found, goal)}."
    if goal.recall is not None or not any(one.recall_share for one in reached):
        best = min(reached, key=lambda one: (one.ms, one.k))
    else:
        best = min(reached, key=lambda one: (-round(one.recall_share or 0, 3), one.ms))
    # Drop tokens that cost no time and bring no recall.
    same = [one for one in reached if (one.backend, one.precision) == (best.backend, best.precision)]
    fewer = [one for one in same if one.k < best.k and one.ms <= best.ms * 1.1 and _as_good(one, best, goal)]
    best = min(fewer, key=lambda one: one.k, default=best)
    share = f", {100 * best.recall_share:.1f} % of the full recall" if best.recall_share is not None else ""
    return best, (
        f"Serve with --backend {best.backend} --precision {best.precision} and k = {best.k}: {best.ms:.2f} ms{share}, "
        f"{best.bytes} bytes for an item's overlapping tokens."
    )


def recall_curves(bundle: Bundle) -> dict[str, RecallCurve]:
    """Map each precision to its curve: Recall@10 (or at the largest number measured) as a share of the full recall.

    The full recall is that of all tokens in the most exact precision. Fewer tokens may have more, by chance or because
    later tokens do not help, and then count as 1.
    """
    measured = {name: entry.serving["recall"] for name, entry in bundle.manifest.precisions.items() if entry.serving}
    full: dict[str, float] = {}
    for name in (name for name in PRECISIONS if name in measured):
        for direction, by_k in measured[name].items():
            full.setdefault(direction, _at_largest(by_k[max(by_k, key=int)]))
    curves: dict[str, RecallCurve] = {}
    for name, by_direction in measured.items():
        for direction, by_k in by_direction.items():
            for k, at in by_k.items():
                share = min(1.0, _at_largest(at) / full[direction]) if full[direction] else 1.0
                curve = curves.setdefault(name, {})
                curve[int(k)] = min(curve.get(int(k), share), share)
    return curves


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """Find the fastest trial with all tokens, among those that hold parity."""
    return min((trial for trial in trials if not trial.broken), key=_ms_of_all_tokens, default=None)


def speed_advice(
    bundle: Bundle,
    trials: Sequence[Trial],
    refused: Mapping[str, Mapping[str, str]],
    one_thread: Trial | None,
    auto: BackendChoice | None,
    cores: int,
    gpu: str | None,
) -> list[str]:
    """Write sentences on what would make it faster, from the trials if they tell, else from the project's benchmarks.

    Args:
        refused: backend to precision to the reason why it does not run.
        one_thread: the fastest trial repeated on one thread, if it used more.
        auto: choice of ``--backend auto``.
        cores: cores that are available to this process.
        gpu: compute capability of the GPU here, or None.
    """
    best = fastest(trials)
    if best is None:
        return []
    advice = [*_by_backend(best, trials, auto), *_by_tokens(best), *_by_length(best)]
    advice += _by_threads(best, one_thread, cores)
    held = list(bundle.manifest.precisions)
    if "int8" not in held:
        advice.append(
            "Export the run again with --precision int8: on the CPU, encoders of the size of ViT-S/16 are twice as "
            "fast in it as in fp32, small ones less; the export's gate says what it costs."
        )
    if any("is not installed" in why for why in refused.get("openvino", {}).values()):
        advice.append(
            "Install OpenVINO (pip install 'fluxtalk[openvino]'): on x86-64 it runs large encoders 1.1 to 1.5 times as "
            "fast as ONNX Runtime in fp32, 1.1 to 1.9 times in static int8, and bf16 at all; small ones more slowly."
        )
    elif "bf16" not in held and "openvino" not in refused:
        advice.append(
            "Export the run again with --precision bf16: OpenVINO runs it twice as fast as fp32 if the processor "
            "multiplies in bfloat16 and the encoder is large."
        )
    if gpu is None:
        advice.append("There is no NVIDIA GPU here; with one, engines of `fluxtalk-export trt` are fastest.")
    elif not any(trial.backend.startswith("tensorrt") for trial in trials):
        advice.append(f"Build engines for the GPU here: fluxtalk-export trt {bundle.folder}.")
    return advice


def _ms_of_all_tokens(trial: Trial) -> float:
    return trial.ms(max(cell.k for cell in trial.latency))


def _by_backend(best: Trial, trials: Sequence[Trial], auto: BackendChoice | None) -> list[str]:
    unasked = _ms_of_choice(trials, auto) if auto is not None else None
    if auto is None or unasked is None or _ms_of_all_tokens(best) > 0.9 * unasked:
        return []
    return [
        f"Name --backend {best.backend} --precision {best.precision}: {_ms_of_all_tokens(best):.2f} ms instead of "
        f"{unasked:.2f} ms with {auto.backend} in {auto.precision}, which is taken unasked."
    ]


def _ms_of_choice(trials: Sequence[Trial], choice: BackendChoice) -> float | None:
    """Milliseconds of the slowest modality with all tokens, each on its own backend; None if one was not tried."""
    by_name = {(trial.backend, trial.precision): trial for trial in trials}
    found = []
    for modality, backend in choice.backends.items():
        trial = by_name.get((backend, choice.precision))
        if trial is None:
            return None
        most = max(cell.k for cell in trial.latency)
        found += [cell.ms for cell in trial.latency if cell.modality == modality and cell.k == most]
    return max(found, default=None)


def _by_tokens(trial: Trial) -> list[str]:
    last = max(cell.k for cell in trial.latency)
    if last == 1:
        return []
    gain = _ms_of_all_tokens(trial) / trial.ms(1)
    if gain < 1.05:
        return [f"Fewer tokens save bytes, not time: k = 1 takes as long as k = {last}, because the encoder dominates."]
    return [f"Fewer tokens: k = 1 takes {trial.ms(1):.2f} ms, k = {last} {_ms_of_all_tokens(trial):.2f} ms."]


def _by_length(trial: Trial) -> list[str]:
    advice = []
    last = max(cell.k for cell in trial.latency)
    for modality in dict.fromkeys(cell.modality for cell in trial.latency):
        cells = [cell for cell in trial.latency if cell.modality == modality and cell.k == last and cell.length]
        if len(cells) > 1:
            short, long = cells[0], cells[-1]
            advice.append(
                f"Shorter inputs: {modality} of length {short.length} takes {short.ms:.2f} ms, of length {long.length} "
                f"{long.ms:.2f} ms."
            )
    return advice


def _by_threads(trial: Trial, one_thread: Trial | None, cores: int) -> list[str]:
    if one_thread is None:
        return [] if cores > 1 else ["This process has one core; with more, large encoders are faster."]
    one_ms, all_ms = _ms_of_all_tokens(one_thread), _ms_of_all_tokens(trial)
    if one_ms < 0.95 * all_ms:
        return [
            f"Serve with --threads 1: {one_ms:.2f} ms instead of {all_ms:.2f} ms, because the encoder is small or the "
            "cores are shared with others."
        ]
    return []


def _reaches(one: Recommendation, goal: Goal) -> bool:
    return (
        (goal.recall is None or (one.recall_share is not None and one.recall_share >= goal.recall - 1e-9))
        and (goal.budget_ms is None or one.ms <= goal.budget_ms)
        and (goal.bytes is None or one.bytes <= goal.bytes)
    )


def _as_good(one: Recommendation, best: Recommendation, goal: Goal) -> bool:
    return goal.recall is not None or (one.recall_share or 0) >= round(best.recall_share or 0, 3)


def _describe(goal: Goal) -> str:
    words = []
    if goal.recall is not None:
        words.append(f"{100 * goal.recall:g} % of the full recall")
    if goal.budget_ms is not None:
        words.append(f"{goal.budget_ms:g} ms")
    if goal.bytes is not None:
        words.append(f"{goal.bytes} bytes")
    return " within ".join(words)


def _nearest(found: Sequence[Recommendation], goal: Goal) -> str:
    shares = [one.recall_share for one in found if one.recall_share is not None]
    words = [f"the fastest takes {min(one.ms for one in found):.2f} ms"] if goal.budget_ms is not None else []
    if goal.bytes is not None:
        words.append(f"the smallest takes {min(one.bytes for one in found)} bytes (store int8 or binary: --dtype)")
    if goal.recall is not None and shares:
        words.append(f"the best has {100 * max(shares):.1f} %")
    return ", ".join(words)


def _at_largest(recall_at: Mapping[str, Any]) -> float:
    """Recall at the largest number of results that was measured."""
    return float(recall_at[max(recall_at, key=int)])
