"""Engines for this GPU, and what they and ONNX Runtime compute, against eager PyTorch."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.gpu.models import Subject
from bench.gpu.report import Report
from fluxtalk.arrays import Arrays
from fluxtalk.artifacts.engine import FLAVORS
from fluxtalk.devices.tensorrt_api import MODULES, load_tensorrt
from fluxtalk.errors import BackendError, UsageError
from fluxtalk.runtime.backends.choose import choose
from fluxtalk.runtime.backends.open_sessions import open_session
from fluxtalk.runtime.backends.options import NATIVE, BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.verify import verify_sessions
from fluxtalk.scoring.parity import TOLERANCES, OutputDifference, embedding_difference, largest, token_difference

BATCHES = (1, 3, 17, 70)
"""One more than a default profile takes, so that parts are put together."""


def build(report: Report, subject: Subject, rehearse: bool) -> list[dict[str, Any]]:
    """Compile every graph with each flavor that is installed.

    Args:
        rehearse: there is no GPU: TensorRT-RTX compiles one graph for another machine's.
    """
    from fluxtalk.export.to_tensorrt.compile import build_engine
    from fluxtalk.export.to_tensorrt.job import builder_options, compile_job, default_precisions
    from fluxtalk.export.to_tensorrt.profiles import profiles_of

    bundle, rows = subject.bundle, []
    modalities = list(bundle.manifest.modalities)
    profiles = profiles_of(bundle, modalities, ())
    for flavor in FLAVORS:
        if importlib.util.find_spec(MODULES[flavor]) is None:
            report.could_not(f"engines of {flavor}", f"{MODULES[flavor]} is not installed")
            continue

        def target(flavor: Any = flavor) -> Any:
            api = load_tensorrt(flavor)
            try:
                return api, builder_options(api, ["8.9"] if rehearse and flavor == "rtx" else [])
            except UsageError as error:  # a GPU that this flavor does not know
                raise BackendError(str(error)) from None

        loaded = report.attempt(f"engines of {flavor}", target)
        if loaded is None:
            continue
        todo = [(modality, precision) for modality in modalities for precision in default_precisions(bundle)]
        for modality, precision in todo[:1] if rehearse else todo:

            def one(modality: str = modality, precision: str = precision, loaded: Any = loaded) -> dict[str, Any]:
                started = time.monotonic()
                source = compile_job(bundle, modality, precision, profiles[modality])
                record = build_engine(loaded[0], source, loaded[1], bundle.engines)
                size = record.engine_bytes if record is not None else None
                seconds = round(time.monotonic() - started, 1)
                return {"modality": modality, "precision": precision, "bytes": size, "seconds": seconds}

            what = f"the {flavor} engine of {subject.name} {modality} in {precision}"
            row = report.attempt(what, one, needs=20)
            if row is not None:
                rows.append({"subject": subject.name, "flavor": flavor, "version": loaded[0].version, **row})
                report.say(f"   {what}: {row['seconds']} s")
    return rows


def backends(cpu: bool) -> tuple[str, ...]:
    """The backends that are tried."""
    return ("ort-cpu",) if cpu else (*NATIVE, "ort-cuda", "ort-tensorrt")


def sessions(
    report: Report, subject: Subject, names: tuple[str, ...], precisions: tuple[str, ...] | None = None
) -> Iterator[tuple[str, str, str, Session]]:
    """Backend, precision, modality and session of everything that can be opened, one at a time."""
    bundle = subject.bundle
    for backend in names:
        for precision in precisions or bundle.manifest.precisions:
            for modality in bundle.manifest.modalities:

                def opened(backend: str = backend, precision: str = precision, modality: str = modality) -> Session:
                    choose(bundle, BackendOptions(backend, precision), [modality])
                    return open_session(bundle, modality, BackendOptions(backend, precision))

                session = report.attempt(f"{backend} on {subject.name} {modality} in {precision}", opened)
                if session is None:
                    # Another modality would fail alike.
                    break
                try:
                    yield backend, precision, modality, session
                finally:
                    session.close()


def parity(report: Report, subject: Subject, names: tuple[str, ...], quick: bool) -> list[dict[str, Any]]:
    """Every modality, k and precision on every backend: golden vectors, and random batches against live eager."""
    rows = []
    for backend, precision, modality, session in sessions(report, subject, names):

        def compare(
            backend: str = backend, precision: str = precision, modality: str = modality, session: Session = session
        ) -> list[dict[str, Any]]:
            # ONNX Runtime builds TensorRT's engines with TF32, and has no option against it.
            rounds = backend == "ort-tensorrt" and precision == "fp32"
            tolerance = TOLERANCES["tf32"] if rounds else subject.bundle.manifest.precisions[precision].tolerance
            found = []
            golden = verify_sessions(subject.bundle, lambda _: session, [modality], precision)
            differences = [("golden", r.k, r.cases, r.difference) for r in golden]
            differences += [("eager", *row) for row in _against_eager(subject, modality, session, quick)]
            for against, k, cases, difference in differences:
                broken = difference.violations(tolerance)
                found.append({"against": against, "k": k, "cases": cases, "broken": broken, **_plain(difference)})
            return found

        what = f"parity of {subject.name} {modality} in {precision} on {backend}"
        measured = report.attempt(what, compare, needs=10)
        if measured is None:
            continue
        rows += [
            {"subject": subject.name, "backend": backend, "precision": precision, "modality": modality, **row}
            for row in measured
        ]
        broken = sorted({f"k = {row['k']} against {row['against']}: {b}" for row in measured for b in row["broken"]})
        if broken:
            report.fail(what, "; ".join(broken))
        else:
            worst = max(row["max_abs"] for row in measured)
            report.say(f"   {what}: holds, at most {worst:.1e}; {session.describe()}")
    return rows


def _against_eager(
    subject: Subject, modality: str, session: Session, quick: bool
) -> Iterator[tuple[int, int, OutputDifference]]:
    """k, how many batches, and the largest differences over them."""
    if modality not in subject.eager:
        return
    tokens = subject.bundle.manifest.num_register_tokens
    lengths = subject.tried_lengths(modality)
    shapes = [(batch, length) for batch in (BATCHES[:3] if quick else BATCHES) for length in lengths]
    cases = []
    for number, (batch, length) in enumerate(shapes):
        arrays = subject.batch(modality, batch, length, seed=number)
        cases.append((arrays, subject.eager[modality].embed_arrays(arrays, tokens)))
    for k in range(1, tokens + 1):
        worst: OutputDifference | None = None
        for arrays, expected in cases:
            # Twice: the second time a recorded graph may answer.
            for _ in range(2):
                found = _difference(session, arrays, expected, k)
                worst = found if worst is None else _worse(worst, found)
        assert worst is not None
        yield k, len(cases), worst


def _difference(session: Session, arrays: Arrays, expected: tuple[Any, Any], k: int) -> OutputDifference:
    found = session.run(arrays, k)
    whole = session.run(arrays, expected[0].shape[1])
    return dataclasses.replace(
        embedding_difference(found["embeddings"], expected[1][:, :k]),
        tokens=token_difference(found["tokens"], expected[0][:, :k]),
        prefix=largest(found["embeddings"] - whole["embeddings"][:, :k]),
    )


def _worse(first: OutputDifference, second: OutputDifference) -> OutputDifference:
    values = {}
    for name, value in dataclasses.asdict(first).items():
        other = getattr(second, name)
        if value is not None and other is not None:
            values[name] = min(value, other) if name in ("min_cosine", "top1") else max(value, other)
    return OutputDifference(**values)


def _plain(difference: OutputDifference) -> dict[str, float | None]:
    """Values for JSON, which has no infinity."""
    values = dataclasses.asdict(difference)
    return {name: None if value is None else float(np.nan_to_num(value, posinf=1e30)) for name, value in values.items()}
