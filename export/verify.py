"""Verification of a bundle without PyTorch: hashes, and golden vectors replayed in every precision on a backend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.artifacts.engine import read_engines, read_plan
from fluxtalk.errors import BackendError, ParityError
from fluxtalk.runtime import load
from fluxtalk.runtime.golden import ParityReport, verify_golden

_COLUMNS = ("max abs", "mean abs", "1 - min cos", "tokens", "prefix", "rows", "top-1")


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
        """Table for people: a line for each modality, precision and k."""
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
        """JSON document of the result."""
        content = {
            "bundle_hash": self.bundle.manifest.bundle_hash,
            "holds": not self.broken,
            "tolerances": {n: e.tolerance.to_dict() for n, e in self.bundle.manifest.precisions.items()},
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
                f"{len(self.broken)} of {len(self.reports)} parity checks exceed the manifest's tolerances; do not serve "
                "this bundle with this backend. "
                f"The first: {self.broken[0].modality} in {self.broken[0].precision} with k = {self.broken[0].k}: "
                f"{'; '.join(self.broken[0].broken)}."
            )


def verify_bundle(
    folder: Path, backend: str = "auto", precisions: Sequence[str] = (), allow_host_code: bool = False
) -> Verification:
    """Check the hash of every file and every engine, and replay the golden vectors.

    Args:
        precisions: the ones to replay, all of which have to run; if empty, all of the bundle that the backend runs.
        allow_host_code: see `fluxtalk.runtime.load`.

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
    reports: list[ParityReport] = []
    not_run: dict[str, str] = {}
    for name in precisions or bundle.manifest.precisions:
        try:
            embedder = load(folder, backend, precision=name, allow_host_code=allow_host_code)
        except BackendError as error:
            if precisions or len(not_run) + 1 == len(bundle.manifest.precisions):
                raise
            not_run[name] = str(error)
            continue
        # Outside of `try`: a failure after the start is not a precision that the backend does not run.
        with embedder:
            reports += verify_golden(bundle, embedder.session, precision=name)
    return Verification(bundle, reports, not_run, [record.file for record in records])
