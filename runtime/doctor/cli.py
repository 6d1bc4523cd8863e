"""`fluxtalk doctor`: the command, and its report for people."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.errors import ParityError
from fluxtalk.runtime.backends.command_options import threads_option
from fluxtalk.runtime.backends.options import AUTO, BACKENDS, BackendOptions
from fluxtalk.runtime.doctor.advice import Goal
from fluxtalk.runtime.doctor.examine import Diagnosis, examine
from fluxtalk.runtime.doctor.trial import Trial

_DEFAULT_RECALL = 0.99
_BACKENDS = [name for name in BACKENDS if name != AUTO]


@click.command(name="doctor")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--recall", type=click.FloatRange(0, 1), help="Smallest share of the full recall to keep, such as 0.99.")
@option("--budget_ms", type=click.FloatRange(0, min_open=True), help="Most milliseconds that one item may take.")
@click.option(
    "--bytes", "byte_limit", type=click.IntRange(1), help="Most bytes that an item's tokens may take in float32."
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(_BACKENDS),
    help="Try this backend alone; repeatable.  [default: all]",
)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
@sentence_errors
def main(
    bundle: Path,
    recall: float | None,
    budget_ms: float | None,
    byte_limit: int | None,
    backends: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Try BUNDLE on every backend that is installed here, and recommend a backend, a precision and a k.

    Replays the golden vectors on each, times single items by k and length, and keeps the times by which --backend auto
    chooses here. With --recall it recommends the fastest
    that reaches it; with --budget-ms or --bytes alone, the best recall within them. Exit code 1 if parity is broken.
    """
    if recall is None and budget_ms is None and byte_limit is None:
        recall = _DEFAULT_RECALL
    found = examine(
        bundle,
        Goal(recall, budget_ms, byte_limit),
        [BackendOptions(name, threads=threads) for name in backends or _BACKENDS],
        lambda backend: click.echo(f"trying {backend}", err=True),
    )
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else report(found))
    if found.broken:
        first = found.broken[0]
        raise ParityError(
            f"Parity is broken in {len(found.broken)} of {len(found.trials)} trials; do not serve the bundle so. "
            f"The first: {first.backend} in {first.precision}: {'; '.join(first.broken)}."
        )


def report(found: Diagnosis) -> str:
    """Render a diagnosis as text."""
    lines = [f"{found.bundle.folder} on {found.machine}", "", _header()]
    lines += [_row(trial) for trial in found.trials]
    lines += ["", *(line for trial in found.trials for line in _latencies(trial))]
    lines += ["", "Not run:", *_refusals(found)] if found.refused else []
    if found.auto is not None:
        lines += ["", f"--backend auto takes {found.auto.backend} in {found.auto.precision}: {found.auto.reason}."]
    lines += ["", found.because, "", "What would make it faster:", *(f"- {sentence}" for sentence in found.faster)]
    return "\n".join(lines)


def _header() -> str:
    return (
        f"{'backend':<13}{'precision':<11}{'parity':<9}{'max abs':>9}{'1 - min cos':>13}{'MB held':>9}{'opens, s':>10}"
    )


def _row(trial: Trial) -> str:
    worst = [max(report["difference"]["max_abs"] for report in trial.parity)]
    worst.append(max(1 - report["difference"]["min_cosine"] for report in trial.parity))
    held = f"{trial.resident_bytes / 1e6:.0f}" if trial.resident_bytes is not None else "?"
    return (
        f"{trial.backend:<13}{trial.precision:<11}{'BROKEN' if trial.broken else 'holds':<9}{worst[0]:>9.1e}"
        f"{worst[1]:>13.1e}{held:>9}{trial.open_seconds:>10.2f}"
    )


def _latencies(trial: Trial) -> list[str]:
    """Render a line for each modality and length, with a time for each k."""
    rows: dict[tuple[str, int | None], list[str]] = {}
    for cell in trial.latency:
        rows.setdefault((cell.modality, cell.length), []).append(f"{cell.ms:.2f} (k={cell.k})")
    named = {key: key[0] + (f" of length {key[1]}" if key[1] else "") for key in rows}
    return [f"{trial.backend} {trial.precision}, {named[key]}, ms: {'  '.join(times)}" for key, times in rows.items()]


def _refusals(found: Diagnosis) -> list[str]:
    """Render a line for each backend and reason."""
    lines = []
    for backend, by_precision in found.refused.items():
        grouped: dict[str, list[str]] = {}
        for precision, why in by_precision.items():
            grouped.setdefault(why, []).append(precision)
        lines += [f"- {backend} ({', '.join(precisions)}): {why}" for why, precisions in grouped.items()]
    return lines
