"""The one verifier of bundles: golden vectors replayed on whatever serves them.

In: a bundle, and its sessions or `BackendOptions` to open them. Out: a `ParityReport` for each modality and k, with the
tolerances that are exceeded. `fluxtalk-export verify`, `fluxtalk doctor`, a starting server and the export all use it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.arrays import Array, Arrays, Floats
from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.artifacts.engine import read_engines, read_plan
from fluxtalk.artifacts.golden import GoldenCase
from fluxtalk.errors import BackendError, InputError, ParityError, reason
from fluxtalk.runtime.backends.open_sessions import open_sessions
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.scoring.parity import TIES, OutputDifference, Tolerance, largest, top1_agreement
from fluxtalk.scoring.parity_accumulator import AttentionDifference, ParityAccumulator

_MAX_PADDING = 7
"""Most positions by which a batch is padded beyond its longest item."""
_ROWS_ALONE = 12
"""Most rows that are also run one at a time."""
_COLUMNS = ("max abs", "mean abs", "1 - min cos", "tokens", "prefix", "rows", "top-1")


@dataclass(frozen=True)
class ParityReport:
    """Differences of a session from the eager outputs with the first k tokens, over all batches tried."""

    modality: str
    precision: str
    session: str
    """Description of the session."""
    k: int
    cases: int
    """Batches that were run."""
    difference: OutputDifference
    tolerance: Tolerance
    attention: AttentionDifference | None = None
    """None if the golden vectors hold no attention."""

    @property
    def broken(self) -> list[str]:
        """One phrase for each tolerance that is exceeded."""
        phrases = self.difference.violations(self.tolerance)
        return phrases + (self.attention.violations(self.tolerance) if self.attention is not None else [])

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types, for JSON."""
        return {**dataclasses.asdict(self), "holds": not self.broken, "broken": self.broken}

    def require(self) -> None:
        """Raise unless parity holds.

        Raises:
            ParityError: it does not.
        """
        if self.broken:
            raise ParityError(self.refusal())

    def refusal(self) -> str:
        """Sentence about the tolerances that are exceeded."""
        return (
            f"Parity does not hold: {self.modality} in {self.precision} with k = {self.k} on {self.session}: "
            f"{'; '.join(self.broken)}; do not serve this bundle with this backend."
        )


@dataclass(frozen=True)
class Verification:
    """Result of `verify_bundle`."""

    bundle: Bundle
    reports: list[ParityReport]
    not_run: dict[str, str]
    """Precision to the reason why the backend does not run it."""
    engines: list[str]
    """File names of the TensorRT engines beside the bundle, whose hashes were checked."""

    @property
    def broken(self) -> list[ParityReport]:
        """Reports with a violation of their precision's tolerance."""
        return [report for report in self.reports if report.broken]

    def table(self) -> str:
        """Render a line for each modality, precision and k."""
        lines = [f"{'modality':<10} {'precision':<9} {'k':>2} " + " ".join(f"{name:>11}" for name in _COLUMNS)]
        for report in self.reports:
            d = report.difference
            cells = [f"{value:11.1e}" for value in (d.max_abs, d.mean_abs, 1 - d.min_cosine)]
            cells += [f"{value:11.1e}" if value is not None else f"{'':>11}" for value in (d.tokens, d.prefix, d.rows)]
            cells.append(f"{d.top1:11.4f}" if d.top1 is not None else f"{'':>11}")
            mark = f"  broken: {'; '.join(report.broken)}" if report.broken else ""
            lines.append(f"{report.modality:<10} {report.precision:<9} {report.k:>2} " + " ".join(cells) + mark)
        lines += [f"{name}: not run: {why}" for name, why in self.not_run.items()]
        sessions = sorted({f"{report.precision} on {report.session}" for report in self.reports})
        lines += ["; ".join(sessions)]
        if not self.broken:
            runs = sum(report.cases for report in self.reports)
            lines.append(
                f"{self.bundle.folder}: {len(self.bundle.manifest.files)} files and {len(self.engines)} engines "
                f"unchanged, parity holds in {runs} runs"
            )
        return "\n".join(lines)

    def json(self) -> str:
        """Render everything as JSON."""
        content = {
            "bundle_hash": self.bundle.manifest.bundle_hash,
            "holds": not self.broken,
            "tolerances": {n: e.tolerance.to_dict() for n, e in self.bundle.manifest.precisions.items()},
            "float32": {m: e.float32.to_dict() for m, e in self.bundle.manifest.modalities.items()},
            "reports": [report.to_dict() for report in self.reports],
            "not_run": self.not_run,
            "engines": self.engines,
        }
        return json.dumps(content, indent=2)

    def require(self) -> None:
        """Raise if a tolerance is violated.

        Raises:
            ParityError: names the first violation.
        """
        if self.broken:
            raise ParityError(
                f"{len(self.broken)} of {len(self.reports)} parity checks exceed the manifest's tolerances; do not "
                "serve this bundle with this backend. "
                f"The first: {self.broken[0].modality} in {self.broken[0].precision} with k = {self.broken[0].k}: "
                f"{'; '.join(self.broken[0].broken)}."
            )


def verify_bundle(folder: Path, options: BackendOptions, precisions: Sequence[str] = ()) -> Verification:
    """Check the hash of every file and every engine, and replay the golden vectors.

    Args:
        options: backend that runs the graphs; their ``precision`` is not looked at.
        precisions: the ones to replay, all of which have to run; if empty, all of the bundle that the backend runs.

    Raises:
        BundleError: a file is missing, foreign or was changed.
        ArtifactError: an engine or its record was changed.
        ParityError: a session does not run an input of the longest length.
        BackendError: the backend is missing, does not run a precision that was named, or runs none of them.
        UsageError: the bundle does not hold a precision that was named.
    """
    bundle = read_bundle(folder)
    # Engines for other machines are checked too, although nothing here would load them.
    records = read_engines(bundle.engines)
    for record in records:
        read_plan(bundle.engines, record)
    modalities = list(bundle.manifest.modalities)
    reports: list[ParityReport] = []
    not_run: dict[str, str] = {}
    for name in precisions or bundle.manifest.precisions:
        try:
            named = dataclasses.replace(options, precision=name)
            _, sessions = open_sessions(bundle, modalities, named, measures=False)
        except BackendError as error:
            if precisions or len(not_run) + 1 == len(bundle.manifest.precisions):
                raise
            not_run[name] = str(error)
            continue
        # Outside of `try`: a failure after the start is not a precision that the backend does not run.
        try:
            reports += verify_sessions(bundle, sessions.__getitem__, modalities, name)
        finally:
            for session in sessions.values():
                session.close()
    return Verification(bundle, reports, not_run, [record.file for record in records])


def verify_sessions(
    bundle: Bundle,
    session_of: Callable[[str], Session],
    modalities: Sequence[str] | None = None,
    precision: str | None = None,
) -> Iterator[ParityReport]:
    """Replay every modality's golden vectors, for every k, alone and in batches.

    Args:
        session_of: gives a modality's session under test.
        modalities: modalities to replay; None takes all.
        precision: precision of the sessions, whose tolerance applies; None is the bundle's first.

    Raises:
        BundleError: the golden file cannot be read, or lacks an array.
    """
    name = bundle.precision(precision)
    for modality in modalities if modalities is not None else bundle.manifest.modalities:
        case, longest = bundle.golden.batch[modality], bundle.golden.longest.get(modality)
        room = padding_room(bundle.manifest.modalities[modality].max_length, case.inputs)
        session = session_of(modality)
        tolerance = promised(bundle, modality, name, session)
        yield from replay(modality, name, session, case, tolerance, room, longest)


def verify_start(
    bundle: Bundle, session_of: Callable[[str], Session], modalities: Sequence[str], precision: str
) -> Iterator[ParityReport]:
    """Replay every modality's golden batch whole, with one token and with all: what a server can do before it answers.

    The rest of `verify_sessions`, parts of batches, rows alone, padding and the longest input, is left for later.

    Args:
        session_of: gives a modality's session under test.
        precision: precision of the sessions, whose tolerance applies.

    Raises:
        BundleError: the golden file cannot be read, or lacks an array.
    """
    for modality in modalities:
        case, session = bundle.golden.batch[modality], session_of(modality)
        tolerance = promised(bundle, modality, precision, session)
        for k in sorted({1, case.expected["tokens"].shape[1]}):
            accumulator = ParityAccumulator()
            accumulator.add(case.inputs, session.run(case.inputs, k, tuple(case.expected)), _first(case.expected, k))
            yield ParityReport(
                modality,
                precision,
                session.describe(),
                k,
                accumulator.cases,
                accumulator.difference,
                tolerance,
                accumulator.attention,
            )


def promised(bundle: Bundle, modality: str, precision: str, session: Session) -> Tolerance:
    """Tolerance that a bundle promises for a session: the precision's, and in float32 the graph's own on a CPU.

    A graph's promise is a multiple of what float32 itself costs there, measured at export. Libraries for a GPU sum in
    other orders and with other algorithms: they are held to the precision's tolerance, at least the largest promise.
    """
    tolerance = bundle.manifest.precisions[precision].tolerance
    if precision != "fp32" or session.backend != "ort-cpu":
        return tolerance
    return bundle.manifest.modalities[modality].float32.apply_to(tolerance)


def padding_room(max_length: int | None, inputs: Arrays) -> int:
    """Count the positions by which a batch may be padded further without exceeding the longest input.

    Args:
        max_length: length of the longest input; None if there is none.
        inputs: the batch; without a mask, inputs have no length.
    """
    if "mask" not in inputs:
        return 0
    return _MAX_PADDING if max_length is None else min(_MAX_PADDING, max_length - int(inputs["mask"].shape[1]))


def replay(
    modality: str,
    precision: str,
    session: Session,
    case: GoldenCase,
    tolerance: Tolerance,
    room: int = 0,
    longest: GoldenCase | None = None,
) -> Iterator[ParityReport]:
    """Run a session on batches cut and padded from a golden case, for every k, against the outputs expected at k = N.

    Args:
        room: positions by which a batch may be padded further.
        longest: one row of the longest input; skipped if the session was compiled for shorter ones.

    Yields:
        one report for each k.

    Raises:
        ParityError: the session does not run the longest input.
    """
    inputs, expected = case.inputs, case.expected
    outputs, total = tuple(expected), expected["tokens"].shape[1]
    # What may be that far off does not tell items apart that are nearer.
    ties = max(TIES, (tolerance.max_abs or 0.0) if tolerance.top1 is not None else 0.0)
    whole = session.run(inputs, total, outputs)
    for k in range(1, total + 1):
        accumulator, rows = ParityAccumulator(), 0.0
        found = session.run(inputs, k, outputs)
        accumulator.add(inputs, found, _first(expected, k))
        for chosen, batch in _variations(inputs, room):
            varied = session.run(batch, k, outputs)
            accumulator.add(batch, varied, _first(expected, k, chosen))
            rows = max(rows, largest(varied["embeddings"] - found["embeddings"][chosen]))
        if longest is not None and _takes(session, longest.inputs):
            accumulator.add(
                longest.inputs, _run_longest(modality, precision, session, longest, k), _first(longest.expected, k)
            )
        difference = dataclasses.replace(
            accumulator.difference,
            rows=rows,
            prefix=largest(found["embeddings"] - whole["embeddings"][:, :k]),
            top1=top1_agreement(found["embeddings"][:, k - 1], expected["embeddings"][:, k - 1], ties),
        )
        described = session.describe()
        yield ParityReport(
            modality, precision, described, k, accumulator.cases, difference, tolerance, accumulator.attention
        )


def replay_longest(
    modality: str, precision: str, session: Session, longest: GoldenCase, tolerance: Tolerance
) -> Iterator[ParityReport]:
    """Replay the longest input alone; rows, prefixes and neighbors are not compared.

    Raises:
        ParityError: the session does not run it.
    """
    for k in range(1, longest.expected["tokens"].shape[1] + 1):
        accumulator = ParityAccumulator()
        accumulator.add(
            longest.inputs, _run_longest(modality, precision, session, longest, k), _first(longest.expected, k)
        )
        described = session.describe()
        yield ParityReport(
            modality,
            precision,
            described,
            k,
            accumulator.cases,
            accumulator.difference,
            tolerance,
            accumulator.attention,
        )


def _run_longest(modality: str, precision: str, session: Session, longest: GoldenCase, k: int) -> dict[str, Floats]:
    try:
        return session.run(longest.inputs, k, tuple(longest.expected))
    except (InputError, BackendError) as error:
        raise ParityError(
            f"{modality} in {precision} does not run the longest input that its preprocessing gives, of length "
            f"{longest.inputs['mask'].shape[1]}, on {session.describe()} ({reason(error)}); export the run again with "
            "an encoder or a max_length that fit each other."
        ) from None


def _takes(session: Session, inputs: Arrays) -> bool:
    """True if a session was compiled for inputs of that length. One that was not refuses them with a clear error."""
    return session.max_length is None or int(inputs["mask"].shape[1]) <= session.max_length


def _first(expected: Arrays, k: int, rows: slice = slice(None)) -> Arrays:
    return {name: array[rows, :k] for name, array in expected.items()}


def _variations(inputs: Arrays, room: int) -> Iterator[tuple[slice, Arrays]]:
    """Yield parts of a batch and their rows: all but the last row, all rows with more padding, and a few rows alone.

    A row alone comes with its padding and without.
    """
    total = len(next(iter(inputs.values())))
    yield slice(0, max(1, total - 1)), {name: array[: max(1, total - 1)] for name, array in inputs.items()}
    if room:
        yield slice(0, total), {name: _padded(array, room) for name, array in inputs.items()}
    for row in sorted({*range(min(total, _ROWS_ALONE // 2)), *range(max(0, total - _ROWS_ALONE // 2), total)}):
        alone = {name: array[row : row + 1] for name, array in inputs.items()}
        yield slice(row, row + 1), alone
        if "mask" in inputs:
            # Cut behind the last feature; a row without any keeps one of padding.
            end = 1 + int(np.flatnonzero(inputs["mask"][row]).max(initial=0))
            yield slice(row, row + 1), {name: array[:, :end] for name, array in alone.items()}


def _padded(array: Array, more: int) -> Array:
    return np.pad(array, [(0, 0), (0, more)] + [(0, 0)] * (array.ndim - 2))
