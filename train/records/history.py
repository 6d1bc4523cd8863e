"""A run's records as `fluxtalk compare` reads them, torch-free: of its folder, or of another implementation.

docs/runs.md is the schema; nothing here guesses at other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.run import STORED_INFO, RunFolder, read_run_json
from fluxtalk.errors import ArtifactError
from fluxtalk.train.records.record_file import Record, RecordFile, read_records

_SCALED_INFO = ("processes", "global_batch")
"""Found rather than asked for, but as decisive as an option: ``batch_size`` is per process."""
# One spelling of each number, or one k would stand in several rows.
_COUNT = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


@dataclass(frozen=True)
class RunHistory:
    """One run, as `fluxtalk compare` reads it."""

    path: Path
    experiment_id: str
    implementation: str
    options: Mapping[str, Any]
    """The hyper-parameters by the names of `fluxtalk-train`, and ``processes`` and ``global_batch``."""
    info: Mapping[str, Any]
    """Known values of ``data``, ``data_hash`` and ``encoder_hashes``."""
    parameters: int | None
    """Trainable parameters."""
    seconds: float | None
    """Wall-clock time of training and scoring."""
    train: tuple[Mapping[str, Any], ...]
    validation: tuple[Mapping[str, Any], ...]
    test: Mapping[str, Any] | None
    torn: bool
    """True if the last line of the records was cut off while it was written."""

    @property
    def steps(self) -> int:
        """The last step that was recorded; 0 before the first."""
        tested = [self.test] if self.test is not None and "step" in self.test else []
        return max((int(record["step"]) for record in (*self.train, *self.validation, *tested)), default=0)

    @property
    def best_validation(self) -> Mapping[str, Any] | None:
        """The validation with the highest score, the first of equals."""
        scored = [record for record in self.validation if score_of(record) is not None]
        return max(scored, key=lambda record: score_of(record) or 0.0, default=None)

    @property
    def scored(self) -> Mapping[str, Any] | None:
        """The record whose recall is shown: the test if there is one, else the best validation."""
        if self.test is not None:
            return self.test
        best = self.best_validation
        return best if best is not None and best.get("recall") else None

    @property
    def scored_on(self) -> str | None:
        """The split of `scored`."""
        if self.test is not None:
            return "test"
        return "validation" if self.scored is not None else None


def score_of(record: Mapping[str, Any]) -> float | None:
    """A record's ``score``; without one, the mean of all its recalls."""
    if "score" in record:
        return float(record["score"])
    values = [
        value
        for by_k in record.get("recall", {}).values()
        for by_cutoff in by_k.values()
        for value in by_cutoff.values()
    ]
    return sum(values) / len(values) if values else None


def read_history(path: Path) -> RunHistory:
    """Read a run's folder, or a ``.jsonl`` file in the same schema.

    Raises:
        ArtifactError: it is neither, or a record does not follow the schema; the line is named.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix != ".jsonl":
        what = "is another file" if path.exists() else "does not exist"
        raise ArtifactError(f"A run is a folder of fluxtalk-train or a .jsonl file of records; {path} {what}.")
    return _read_file(path)


def _read_folder(root: Path) -> RunHistory:
    content, folder = read_run_json(root), RunFolder(root)
    file = read_records(folder.metrics) if folder.metrics.is_file() else RecordFile((), torn=False)
    _check_records(folder.metrics, file.records)
    # As it is in the file, not a `RunInfo`: what is not stated becomes a note of the comparison.
    info, scores = content[STORED_INFO], folder.read_results() or {}
    if scores:
        _check_scores(str(folder.results), scores)
        if "step" in scores:
            _check_step(str(folder.results), scores)
    _check_run(f"{STORED_INFO} in {folder.description}", info)
    return RunHistory(
        path=root,
        experiment_id=str(content.get("experiment_id")),
        implementation=str(content.get("implementation")),
        options=content["options"] | {name: info[name] for name in _SCALED_INFO if name in info},
        info=info,
        parameters=info.get("parameters"),
        seconds=scores.get("seconds"),
        train=_of_kind(file.records, "train"),
        validation=_of_kind(file.records, "validation"),
        test=scores or _last(_of_kind(file.records, "test")),
        torn=file.torn,
    )


def _read_file(path: Path) -> RunHistory:
    file = read_records(path)
    _check_records(path, file.records)
    if not file.records:
        raise ArtifactError(f"{path} has no records; docs/runs.md says what a run is made of.")
    identities = {(r.values["experiment_id"], r.values["implementation"]) for r in file.records}
    if len(identities) > 1:
        listed = ", ".join(f"{experiment} of {implementation}" for experiment, implementation in sorted(identities))
        raise ArtifactError(f"{path} has records of several runs ({listed}); give each run a file of its own.")
    [(experiment_id, implementation)] = identities
    run = _last(_of_kind(file.records, "run")) or {}
    return RunHistory(
        path=path,
        experiment_id=experiment_id,
        implementation=implementation,
        options=run.get("options", {}),
        info=run,
        parameters=run.get("parameters"),
        seconds=run.get("seconds"),
        train=_of_kind(file.records, "train"),
        validation=_of_kind(file.records, "validation"),
        test=_last(_of_kind(file.records, "test")),
        torn=file.torn,
    )


def _check_records(path: Path, records: Sequence[Record]) -> None:
    for record in records:
        where, values = f"{path} line {record.number}", record.values
        for name in ("experiment_id", "implementation"):
            if not isinstance(values.get(name), str):
                raise ArtifactError(f"{where} needs {name}, a string; got {values.get(name)!r}.")
        if values["kind"] == "run":
            _check_run(where, values)
        if values["kind"] not in ("train", "validation", "test"):
            continue
        _check_step(where, values)
        _check_scores(where, values)


def _check_step(where: str, values: Mapping[str, Any]) -> None:
    step = values.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ArtifactError(f"{where} needs step, the number of optimizer steps done; got {step!r}.")


def _check_run(where: str, values: Mapping[str, Any]) -> None:
    for name, kind in (("options", "an object"), ("encoder_hashes", "an object"), ("data_hash", "a string")):
        if name in values and not isinstance(values[name], dict if kind == "an object" else str):
            raise ArtifactError(f"{where} needs {kind} as {name}; got {values[name]!r}.")
    for name in ("parameters", "seconds"):
        if name in values and not _is_number(values[name]):
            raise ArtifactError(f"{where} needs a number as {name}; got {values[name]!r}.")


def _check_scores(where: str, values: Mapping[str, Any]) -> None:
    for name in ("total", "score", "seconds"):
        # A loss that is not finite is written as null.
        if name in values and not _is_number(values[name]) and not (name == "total" and values[name] is None):
            raise ArtifactError(f"{where} needs a number as {name}; got {values[name]!r}.")
    chance = values.get("chance", {})
    if not isinstance(chance, dict) or not all(
        isinstance(by_cutoff, dict) and all(map(_is_number, by_cutoff.values())) for by_cutoff in chance.values()
    ):
        raise ArtifactError(f"{where} needs chance[direction][cut-off], a share from 0 to 1; got {chance!r}.")
    _check_recall(where, values)


def _check_recall(where: str, values: Mapping[str, Any]) -> None:
    expected = (
        'recall[direction][k][cut-off], a share from 0 to 1, with k and cut-off as strings of digits such as "10"'
    )
    recall = values.get("recall", {})
    if not isinstance(recall, dict) or not all(isinstance(by_k, dict) for by_k in recall.values()):
        raise ArtifactError(f"{where} needs {expected}; got {recall!r}.")
    for direction, by_k in recall.items():
        for k, by_cutoff in by_k.items():
            if not _COUNT.fullmatch(k) or not isinstance(by_cutoff, dict):
                raise ArtifactError(f"{where} needs {expected}; got {k!r}: {by_cutoff!r} in {direction}.")
            for cutoff, value in by_cutoff.items():
                if not _COUNT.fullmatch(cutoff) or not _is_number(value) or not 0 <= value <= 1:
                    raise ArtifactError(f"{where} needs {expected}; got {cutoff!r}: {value!r} in {direction}, k={k}.")


def _of_kind(records: Sequence[Record], kind: str) -> tuple[Mapping[str, Any], ...]:
    return tuple(record.values for record in records if record.values["kind"] == kind)


def _last(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return records[-1] if records else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
