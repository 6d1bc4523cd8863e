"""Writes the graphs of each precision, once golden vectors and quality gate hold."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fluxtalk.artifacts.bundle import PrecisionEntry
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import DataError, ParityError, QualityError
from fluxtalk.export.graph.to_onnx import graph_files
from fluxtalk.export.graph.trace import TracedModality
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.precision.convert import convert, methods_of, promise, runs_on_cpu
from fluxtalk.export.precision.half import emulate_half
from fluxtalk.export.precision.quality import HeldOut, Scores, held_out_items, quality, score
from fluxtalk.model.checkpoints.run import TrainedRun
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.golden import Golden, ParityReport, replay, replay_longest
from fluxtalk.scoring.parity import EXPORT_TOLERANCE, Difference, Tolerance
from fluxtalk.scoring.parity_accumulator import AttentionDifference, attention_tolerance

Say = Callable[[str], None]


def graph_name(modality: str, precision: str) -> str:
    """The file of a graph in a bundle."""
    return f"{modality}.{precision}.onnx"


class GraphWriter:
    """Makes the graphs of each precision, and holds what was measured.

    Args:
        folder: the bundle that is being written.
        scratch: for graphs that are only tried.
        traced: modality to its float32 graph and golden vectors.
        tokens: how many register tokens the bundle has.
        say: told what was measured.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        traced: Mapping[str, TracedModality],
        options: ExportOptions,
        tokens: int,
        say: Say,
    ) -> None:
        self._folder = folder
        self._scratch = scratch
        self._traced = traced
        self._options = options
        self._tokens = tokens
        self._say = say
        self._held_out: HeldOut | None = None
        self._unmeasured = ""
        self.reports: dict[str, Any] = {}

    def float32_scores(self, run: TrainedRun, eval_data: PairDataset) -> Scores | None:
        """Prove the float32 graphs against eager PyTorch, and score them; None where there are no held-out pairs."""
        config = run.head.config
        graphs = {m: part.model for m, part in self._traced.items()}
        with self._sessions(graphs, self._scratch, "proof") as sessions:
            self._replay("fp32", sessions, EXPORT_TOLERANCE)
            try:
                self._held_out = held_out_items(
                    eval_data,
                    {m: part.preprocess for m, part in self._traced.items()},
                    self._options.eval_items,
                    min(self._tokens, config.num_overlapping_tokens),
                    config.aggregation,
                )
                return score(self._held_out, sessions, self._tokens)
            except DataError as error:
                self._unmeasured = str(error)
                return None

    def precision(self, name: str, reference: Scores | None) -> PrecisionEntry:
        """Write the graphs of a precision, replay the golden vectors, and hold the gate."""
        refused: list[str] = []
        tolerance, method, serving = promise(name, ""), "", dict[str, Any]()
        for method in methods_of(name, self._options.int8):
            label = f"{name} ({method})" if method else name
            graphs = {m: convert(part.model, name, method, part.calibration) for m, part in self._traced.items()}
            for modality, model in graphs.items():
                graph_files(model, self._folder, graph_name(modality, name))
            tried = (
                graphs if runs_on_cpu(name) else {m: emulate_half(part.model, name) for m, part in self._traced.items()}
            )
            with self._sessions(tried, self._scratch, label) as sessions:
                tolerance = promise(name, method)
                problems, tolerance = self._golden_problems(name, sessions, tolerance)
                serving, report = self._measure(name, label, sessions, reference, tolerance)
            problems += report["broken"] if report is not None else [f"it could not be measured: {self._unmeasured}"]
            self.reports[name] = {"method": method, "gate": problems, **(report or {})}
            if not problems or (name == "fp32" and report is None):
                return PrecisionEntry(tolerance, method, serving)
            refused.append(f"{label}: {'; '.join(problems)}")
        if self._options.allow_quality_loss:
            self._say(f"  allowed all the same: {refused[-1]}")
            return PrecisionEntry(tolerance, method, serving)
        raise QualityError(
            f"The quality gate does not hold for {' | '.join(refused)}. Leave out --precision {name}, name other "
            "--eval_data, or accept the loss with --allow-quality-loss."
        )

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

    def _replay(self, name: str, sessions: dict[str, Session], tolerance: Tolerance) -> list[ParityReport]:
        reports = [
            report
            for m, part in self._traced.items()
            for report in replay(m, name, sessions[m], part.inputs, part.outputs, tolerance, part.room)
        ]
        if name == "fp32":
            for report in reports:
                report.require()
            worst = max(report.difference.max_abs for report in reports)
            self._say(f"  fp32: {len(reports)} k and modalities, at most {worst:.1e} from eager PyTorch")
        return reports

    def _golden_problems(
        self, name: str, sessions: dict[str, Session], tolerance: Tolerance
    ) -> tuple[list[str], Tolerance]:
        """What the golden vectors break, and the tolerance widened to what was measured where that is allowed."""
        if name == "fp32":
            # Proved already, more strictly.
            return [], tolerance
        reports = self._replay(name, sessions, tolerance)
        problems = sorted({f"golden vectors of {r.modality}: {phrase}" for r in reports for phrase in r.broken})
        if problems and self._options.allow_quality_loss:
            for report in reports:
                tolerance = widened(tolerance, report.difference, report.attention)
        return problems, tolerance

    def _measure(
        self, name: str, label: str, sessions: dict[str, Session], reference: Scores | None, tolerance: Tolerance
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
        report = quality(self._held_out, reference, found, name, tolerance, measured_on)
        if name != "fp32":
            self._say(f"  {label}: {report.line()}")
        return serving, report.to_dict()


def widened(tolerance: Tolerance, difference: Difference, attention: AttentionDifference | None) -> Tolerance:
    """The tolerance, where a difference breaks it replaced by one and a half times what was measured."""
    changes: dict[str, float] = {}
    for name in ("max_abs", "mean_abs", "tokens", "prefix", "rows"):
        value, allowed = getattr(difference, name), getattr(tolerance, name)
        if value is not None and allowed is not None and not value <= allowed:
            if not np.isfinite(value):
                raise ParityError(f"{name} of the golden vectors is not finite, which nothing can allow.")
            changes[name] = 1.5 * value
    if not difference.min_cosine >= tolerance.min_cosine:
        changes["min_cosine"] = max(0.0, 1 - 1.5 * (1 - difference.min_cosine))
    if attention is not None and not attention.max_abs <= attention_tolerance(tolerance):
        changes["attention"] = 1.5 * attention.max_abs
    return dataclasses.replace(tolerance, **changes)


def prove_longest(
    folder: Path, longest: Mapping[str, Golden], precisions: Mapping[str, PrecisionEntry], allow_quality_loss: bool
) -> dict[str, PrecisionEntry]:
    """Run each graph that runs on the CPU on its modality's longest input.

    Returns:
        the precisions; where a loss is allowed, with promises that were widened to what was measured.

    Raises:
        ParityError: a graph does not run it, or differs from eager PyTorch by more than its precision promises.
    """
    proved = dict(precisions)
    for name in filter(runs_on_cpu, precisions):
        for modality, case in longest.items():
            session = OnnxRuntimeSession(folder / graph_name(modality, name), precision=name)
            try:
                for report in replay_longest(modality, name, session, case, proved[name].tolerance):
                    if report.broken and allow_quality_loss and name != "fp32":
                        wider = widened(proved[name].tolerance, report.difference, report.attention)
                        proved[name] = dataclasses.replace(proved[name], tolerance=wider)
                    # Held to what the bundle promises in the end.
                    dataclasses.replace(report, tolerance=proved[name].tolerance).require()
            finally:
                session.close()
    return proved
