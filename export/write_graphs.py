"""Graphs of every precision, written once their golden vectors and the quality gate hold."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fluxtalk.artifacts.bundle import PrecisionEntry, graph_name
from fluxtalk.artifacts.golden import GoldenCase
from fluxtalk.console import Log
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import DataError, ParityError, QualityError
from fluxtalk.export.graph.layers import graph_difference
from fluxtalk.export.graph.to_onnx import graph_files
from fluxtalk.export.graph.trace import TracedModality
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.precision.convert import convert, methods_of, runs_on_cpu, tolerance_of
from fluxtalk.export.precision.half import emulate_half
from fluxtalk.export.precision.quality import HeldOut, Scores, compare_quality, held_out_items, score
from fluxtalk.model.checkpoints.trained_run import TrainedRun
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.verify import ParityReport, replay, replay_longest
from fluxtalk.scoring.noise import float32_tolerance
from fluxtalk.scoring.parity import OutputDifference, Tolerance, loosened, promise_of
from fluxtalk.scoring.parity_accumulator import AttentionDifference, attention_tolerance


class GraphWriter:
    """Makes the graphs of each precision, measures them, and writes those that may be served.

    Args:
        folder: the bundle's.
        scratch: folder for graphs that are only measured.
        traced: modality to its float32 graph and golden vectors.
        tokens: register tokens of the bundle.
        log: gets a line for each measurement.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        traced: Mapping[str, TracedModality],
        options: ExportOptions,
        tokens: int,
        log: Log,
    ) -> None:
        self._folder = folder
        self._scratch = scratch
        self._traced = traced
        self._options = options
        self._tokens = tokens
        self._log = log
        self._held_out: HeldOut | None = None
        self._not_measured = ""
        self.reports: dict[str, Any] = {}
        """Precision to its quality report, as ``quality.json`` holds it."""
        self.refused: dict[str, str] = {}
        """Precision to the reason why it is not written."""

    def float32_scores(self, run: TrainedRun, eval_data: PairDataset) -> Scores | None:
        """Hold the float32 graphs against eager PyTorch, and score them; None if there are no held-out pairs.

        Raises:
            ParityError: a graph differs from eager PyTorch by more than it promises; it names the module.
        """
        config = run.head.config
        graphs = {m: part.model for m, part in self._traced.items()}
        with self._sessions(graphs, self._scratch, "proof") as sessions:
            self._require_float32(sessions)
            try:
                self._held_out = held_out_items(
                    eval_data,
                    {m: part.preprocess for m, part in self._traced.items()},
                    self._options.eval_items,
                    config.layout.truncated(self._tokens),
                    config.aggregation,
                )
                return score(self._held_out, sessions, self._tokens)
            except DataError as error:
                self._not_measured = str(error).rstrip(".")
                return None

    def write(self, name: str, reference: Scores | None) -> PrecisionEntry:
        """Write the graphs of a precision, and hold them against the golden vectors and the quality gate.

        Args:
            reference: of `float32_scores`.

        Raises:
            QualityError: no method passes, and a loss of quality is not allowed.
            UsageError: the graph cannot be converted.
        """
        refused: list[str] = []
        tolerance, method, serving = tolerance_of(name, ""), "", dict[str, Any]()
        for method in methods_of(name, self._options.int8):
            label = f"{name} ({method})" if method else name
            graphs = {m: convert(part.model, name, method, part.calibration) for m, part in self._traced.items()}
            for modality, model in graphs.items():
                graph_files(model, self._folder, graph_name(modality, name))
            tried = (
                graphs if runs_on_cpu(name) else {m: emulate_half(part.model, name) for m, part in self._traced.items()}
            )
            with self._sessions(tried, self._scratch, label) as sessions:
                tolerance = tolerance_of(name, method)
                problems, tolerance = self._golden_problems(name, sessions, tolerance)
                serving, report = self._measure(name, label, sessions, reference)
            problems += report["broken"] if report is not None else [f"it could not be measured: {self._not_measured}"]
            if name == "fp32":
                # Against eager PyTorch it was held already, and it is what the others are compared with.
                problems = []
            self.reports[name] = {"method": method, "gate": problems, **(report or {})}
            if not problems:
                return PrecisionEntry(tolerance, method, serving)
            refused.append(f"{label}: {'; '.join(problems)}")
        if self._options.allow_quality_loss:
            self._log(f"  allowed by --allow-quality-loss: {refused[-1]}")
            return PrecisionEntry(tolerance, method, serving)
        raise QualityError(" | ".join(refused))

    def refuse(self, name: str, why: str) -> None:
        """Note that a precision is not written, and remove what was written of it."""
        self.refused[name] = why
        self.reports.pop(name, None)
        for modality in self._traced:
            graph = self._folder / graph_name(modality, name)
            for path in (graph, graph.with_name(f"{graph.name}.data")):
                path.unlink(missing_ok=True)
        self._log(f"  {name}: refused: {why}")

    @contextmanager
    def _sessions(self, graphs: dict[str, onnx.ModelProto], folder: Path, label: str) -> Iterator[dict[str, Session]]:
        sessions: dict[str, Session] = {}
        try:
            for modality, model in graphs.items():
                name = f"{modality}.{label.replace(' ', '')}.onnx"
                graph_files(model, folder, name)
                sessions[modality] = OnnxRuntimeSession(folder / name)
            yield sessions
        finally:
            for session in sessions.values():
                session.close()

    def _require_float32(self, sessions: dict[str, Session]) -> None:
        """Hold the float32 graphs to what they promise, where they are exported."""
        for modality, part in self._traced.items():
            self._log(f"  {modality}: {part.noise.line()}")
            reports = self._replay("fp32", sessions, part.noise.tolerance, [modality])
            found = max(reports, key=lambda report: report.difference.max_abs)
            self._log(f"  {modality}: float32 graph at most {found.difference.max_abs:.1e} from eager PyTorch")
            for report in reports:
                if report.broken:
                    raise ParityError(f"{report.refusal()} The difference {self._where(modality, sessions[modality])}.")

    def _where(self, modality: str, session: Session) -> str:
        part = self._traced[modality]
        found = session.run(part.golden.inputs, self._tokens)["embeddings"]
        return graph_difference(
            part.embedder, part.model, part.layers, part.golden.inputs, found, part.golden.expected["embeddings"]
        )

    def _replay(
        self, name: str, sessions: dict[str, Session], tolerance: Tolerance, modalities: Sequence[str] = ()
    ) -> list[ParityReport]:
        return [
            report
            for m in modalities or self._traced
            for report in replay(m, name, sessions[m], self._traced[m].golden, tolerance, self._traced[m].room)
        ]

    def _golden_problems(
        self, name: str, sessions: dict[str, Session], tolerance: Tolerance
    ) -> tuple[list[str], Tolerance]:
        """Violations by the golden vectors, and the tolerance: what was measured, with a margin."""
        if name == "fp32":
            # `float32_scores` has checked it, by what each graph promises.
            return [], float32_tolerance(tolerance, (part.noise for part in self._traced.values()))
        reports = self._replay(name, sessions, tolerance)
        tolerance = promise_of(name, tolerance, [report.difference for report in reports])
        reports = [dataclasses.replace(report, tolerance=tolerance) for report in reports]
        problems = sorted({f"golden vectors of {r.modality}: {phrase}" for r in reports for phrase in r.broken})
        if problems and self._options.allow_quality_loss:
            for report in reports:
                tolerance = widen(tolerance, report.difference, report.attention)
        return problems, tolerance

    def _measure(
        self, name: str, label: str, sessions: dict[str, Session], reference: Scores | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        serving: dict[str, Any] = {}
        measured_on = "ort-cpu" if runs_on_cpu(name) else f"float32 on ort-cpu, rounded to {name} behind every operator"
        if runs_on_cpu(name) and self._held_out is not None:
            held_out = self._held_out
            counts = [str(k) for k in range(1, self._tokens + 1)]
            serving["latency_ms"] = {
                m: {k: held_out.latency(m, session, int(k)) for k in counts} for m, session in sessions.items()
            }
            serving["latency_of"] = f"batch 1, ONNX Runtime, {os.cpu_count()} cores, {platform.machine()}"
        if reference is None or self._held_out is None:
            return serving, None
        found = score(self._held_out, sessions, self._tokens)
        serving["recall"] = found.recall
        serving["pair_recall"] = self._held_out.pair_recall(found.tokens).to_dict()
        noise = {m: part.noise.noise for m, part in self._traced.items()}
        report = compare_quality(self._held_out, reference, found, name, noise, measured_on)
        if name != "fp32":
            self._log(f"  {label}: {report.line()}")
        return serving, report.to_dict()


def widen(tolerance: Tolerance, difference: OutputDifference, attention: AttentionDifference | None) -> Tolerance:
    """Replace each bound of a tolerance that was exceeded by one and a half times the measured difference."""
    changes: dict[str, float] = {}
    for name in ("max_abs", "mean_abs", "tokens", "prefix", "rows"):
        value, allowed = getattr(difference, name), getattr(tolerance, name)
        if value is not None and allowed is not None and not value <= allowed:
            if not np.isfinite(value):
                raise ParityError(f"{name} of the golden vectors is not finite, which no tolerance can allow.")
            changes[name] = 1.5 * value
    if not difference.min_cosine >= tolerance.min_cosine:
        changes["min_cosine"] = max(0.0, 1 - 1.5 * (1 - difference.min_cosine))
    if attention is not None and not attention.max_abs <= attention_tolerance(tolerance):
        changes["attention"] = 1.5 * attention.max_abs
    return dataclasses.replace(tolerance, **changes)


def check_longest(
    folder: Path,
    longest: Mapping[str, GoldenCase],
    name: str,
    entry: PrecisionEntry,
    promises: Mapping[str, Tolerance],
    allow_quality_loss: bool,
) -> PrecisionEntry:
    """Run the graphs of a precision on their modality's longest input, unless they do not run on the CPU.

    Args:
        entry: the precision, with what it promises.
        promises: modality to the promise of its float32 graph.

    Returns:
        The precision. Its tolerance is measured anew with these inputs, and if a loss is allowed widened to what was
        measured.

    Raises:
        ParityError: a graph does not run the input, or its difference from eager PyTorch exceeds the tolerance.
    """
    if not runs_on_cpu(name):
        return entry
    for modality, case in longest.items():
        session = OnnxRuntimeSession(folder / graph_name(modality, name), precision=name)
        try:
            for report in replay_longest(modality, name, session, case, entry.tolerance):
                tolerance = promises[modality] if name == "fp32" else entry.tolerance
                if name != "fp32":
                    tolerance = loosened(name, tolerance, report.difference)
                    if allow_quality_loss:
                        tolerance = widen(tolerance, report.difference, report.attention)
                    entry = dataclasses.replace(entry, tolerance=tolerance)
                # Checked against the tolerance that goes into the bundle.
                dataclasses.replace(report, tolerance=tolerance).require()
        finally:
            session.close()
    return entry
