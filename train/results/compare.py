"""Runs side by side: aligned by their hyper-parameters, with all that makes their numbers incomparable."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxtalk.artifacts.files import canonical_json
from fluxtalk.errors import UsageError
from fluxtalk.train.records.history import RunHistory, score_of

REGISTER_CONFIGURATION = (
    "num_register_tokens",
    "num_overlapping_tokens",
    "nested_dropout_rate",
    "nested_dropout_schedule",
    "complementary_reg_weight",
)
NOT_STATED = "-"
# Paths and names of a run are not hyper-parameters; its inputs are compared by hash.
_PLACES = {
    "stage1_checkpoint", "data", "output_dir", "log_name", "cache_dir", "experiment_id", "implementation"
}  # fmt: skip
# Values of our own launcher: another implementation that does not state them leaves nothing out.
_LAUNCH = {"processes", "global_batch"}


@dataclass(frozen=True)
class Comparison:
    """Runs in the order in which they are shown: group by group, and as they were named within a group."""

    runs: tuple[RunHistory, ...]
    names: tuple[str, ...]
    """Name of each run: that of its folder or file; its path if two share one."""
    align_by: tuple[str, ...]
    groups: tuple[int, ...]
    """Group of each run, from 1: runs of a group have equal values of every option in ``align_by``."""
    differing: tuple[str, ...]
    """The options that differ between runs, those of ``align_by`` first."""
    notes: tuple[str, ...]
    """One sentence for everything that makes numbers incomparable, or that was not stated."""

    def directions(self) -> tuple[str, ...]:
        """List every direction that a run was scored in."""
        found = (direction for run in self.runs if run.scored for direction in run.scored.get("recall", {}))
        return tuple(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values."""
        return {
            "align_by": list(self.align_by),
            "differing_options": {name: [run.options.get(name) for run in self.runs] for name in self.differing},
            "runs": [
                _run_dict(name, group, run) for name, group, run in zip(self.names, self.groups, self.runs, strict=True)
            ],
            "notes": list(self.notes),
        }


def compare(runs: Sequence[RunHistory], align_by: Sequence[str] = REGISTER_CONFIGURATION) -> Comparison:
    """Align runs by their hyper-parameters.

    Args:
        align_by: runs with equal values of these options form a group. A run that does not state one of them is
            equal only to others that do not state it either.

    Raises:
        UsageError: a run is named twice, or no run has an option of ``align_by``.
    """
    paths = [run.path.resolve() for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if paths.count(path) > 1:
            raise UsageError(f"{run.path} is named twice; name each run once.")
    known = list(dict.fromkeys(name for run in runs for name in run.options))
    if tuple(align_by) != REGISTER_CONFIGURATION:
        for name in align_by:
            if name not in known:
                raise UsageError(f"--align-by names options that runs state ({', '.join(known)}); got {name!r}.")
    keys = [tuple(_key(run.options.get(name, NOT_STATED)) for name in align_by) for run in runs]
    distinct = list(dict.fromkeys(keys))
    order = sorted(range(len(runs)), key=lambda index: distinct.index(keys[index]))
    ordered = tuple(runs[index] for index in order)
    names = _names(ordered)
    candidates = [*align_by, *(name for name in known if name not in align_by and name not in _PLACES)]
    return Comparison(
        runs=ordered,
        names=names,
        align_by=tuple(align_by),
        groups=tuple(distinct.index(keys[index]) + 1 for index in order),
        differing=tuple(name for name in candidates if _differs(name, ordered)),
        notes=_notes(ordered, names),
    )


def _key(value: Any) -> str:
    """Equal for equal values of JSON: 1 is 1.0, and true is neither."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return canonical_json(float(value) if number else value)


def _differs(name: str, runs: Sequence[RunHistory]) -> bool:
    """Return whether runs that state an option state different values."""
    return len({_key(run.options[name]) for run in runs if name in run.options}) > 1


def _names(runs: Sequence[RunHistory]) -> tuple[str, ...]:
    short = [run.path.stem if run.path.suffix == ".jsonl" else run.path.resolve().name for run in runs]
    return tuple(str(run.path) if short.count(name) > 1 else name for run, name in zip(runs, short, strict=True))


def _notes(runs: Sequence[RunHistory], names: Sequence[str]) -> tuple[str, ...]:
    notes = [
        *_info_notes(runs, names, "data_hash", "other data", "whether it saw the same data"),
        *_info_notes(runs, names, "encoder_hashes", "other encoders", "whether its encoders are the same"),
        *_split_notes(runs, names),
    ]
    known = dict.fromkeys(name for run in runs for name in run.options if name not in _PLACES | _LAUNCH)
    for name, run in zip(names, runs, strict=True):
        silent = [option for option in known if option not in run.options]
        if silent:
            notes.append(f"{name} does not state {', '.join(silent)}: they may differ.")
        if run.test is None and run.best_validation is None:
            notes.append(f"{name} has not been scored yet.")
        if run.torn:
            notes.append(f"{name}: the last line of its records is torn and was left out.")
    return tuple(notes)


def _info_notes(runs: Sequence[RunHistory], names: Sequence[str], field: str, other: str, unknown: str) -> list[str]:
    if len(runs) < 2:
        return []
    stated = [run.info.get(field) for run in runs]
    notes = _partition_note(names, stated, f"Not comparable, {other}", lambda value: _short(field, value))
    return notes + [
        f"{name} does not state its {field}: {unknown} as the others' cannot be told."
        for name, value in zip(names, stated, strict=True)
        if value is None
    ]


def _split_notes(runs: Sequence[RunHistory], names: Sequence[str]) -> list[str]:
    notes = _partition_note(names, [run.scored_on for run in runs], "Not comparable, recall of other splits", str)
    # Equal chances do not prove equal galleries, but different ones prove different galleries.
    for direction in dict.fromkeys(d for run in runs for d in _chance(run)):
        tested = [_chance(run).get(direction, {}).get("10") if run.test is not None else None for run in runs]
        # Implementations round differently; galleries of different sizes differ by more.
        rounded = [None if value is None else round(value, 5) for value in tested]
        found = _partition_note(
            names, rounded, f"Not comparable, other test split ({direction})", lambda value: f"chance@10 {value:.3%}"
        )
        if found:
            return notes + found
    return notes


def _partition_note(names: Sequence[str], values: Sequence[Any], problem: str, show: Callable[[Any], str]) -> list[str]:
    """Make one note that lists which runs share which value, if the stated values are not all equal."""
    stated = [(name, value) for name, value in zip(names, values, strict=True) if value is not None]
    keyed = sorted(stated, key=lambda pair: _key(pair[1]))
    parts = [list(part) for _, part in itertools.groupby(keyed, key=lambda pair: _key(pair[1]))]
    if len(parts) < 2:
        return []
    listed = "; ".join(f"{', '.join(name for name, _ in part)}: {show(part[0][1])}" for part in parts)
    return [f"{problem} ({listed})."]


def _short(field: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{modality} {str(part)[:8]}" for modality, part in value.items())
    return f"{field} {str(value)[:8]}"


def _chance(run: RunHistory) -> Mapping[str, Any]:
    chance: Mapping[str, Any] = run.scored.get("chance", {}) if run.scored else {}
    return chance


def _run_dict(name: str, group: int, run: RunHistory) -> dict[str, Any]:
    best = run.best_validation
    return {
        "name": name,
        "path": str(run.path),
        "group": group,
        "implementation": run.implementation,
        "experiment_id": run.experiment_id,
        "options": dict(run.options),
        "parameters": run.parameters,
        "seconds": run.seconds,
        "steps": run.steps,
        "best_validation": {"step": best["step"], "score": score_of(best)} if best else None,
        "scored_on": run.scored_on,
        "recall": dict(run.scored.get("recall", {})) if run.scored else {},
    }
