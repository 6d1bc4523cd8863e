"""``auto`` by measurement: real backends, timed side by side, and the records that decide the next start."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fluxtalk.artifacts.backend_times import BackendTimes, Conditions, read_times, write_times
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.errors import BackendError
from fluxtalk.runtime import load
from fluxtalk.runtime.backends import choose as choosing
from fluxtalk.runtime.backends import measure as measuring
from fluxtalk.runtime.backends import open_sessions as opening
from fluxtalk.runtime.backends.choose import choose
from fluxtalk.runtime.backends.measure import MEASURE_VARIABLE, conditions_of
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from fluxtalk.runtime.backends.open_sessions import open_sessions
from fluxtalk.runtime.backends.openvino_session import openvino_installed
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.backends.session import Session
from fluxtalk.runtime.server.settings import ServerSettings
from tests.conftest import Made
from tests.runtime.server.conftest import running

# Not `importorskip`: that would import it with its telemetry.
pytestmark = pytest.mark.skipif(
    not openvino_installed(),
    reason="openvino is not installed, so auto has no choice (fluxtalk[openvino])",
)

AUTO = BackendOptions(threads=1)
OTHER_CONDITIONS = [
    {"graph": "0" * 64},
    {"processor": "another"},
    {"instructions": "another"},
    {"threads": 2},
    {"spinning": False},
    {"libraries": {"onnxruntime": "1.0", "openvino": "2020.1"}},
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of each test's own, in which a start measures; and no GPU."""
    monkeypatch.setenv("FLUXTALK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(MEASURE_VARIABLE)
    monkeypatch.setattr(choosing, "compute_capability", lambda: None)
    return tmp_path / "cache" / "backends"


def conditions(bundle: Bundle, modality: str, options: BackendOptions = AUTO) -> Conditions:
    return conditions_of(bundle, modality, "fp32", options)


def keep(bundle: Bundle, modality: str, ort_cpu: float, openvino: float, **others: Any) -> None:
    times = BackendTimes(["1"], {"ort-cpu": [ort_cpu], "openvino": [openvino]}, "2026-11-30", **others)
    assert write_times(conditions(bundle, modality), times)


@pytest.mark.parametrize("at_leisure", [False, True])
def test_who_asks_for_a_measurement_gets_a_batch_of_long_items_too(
    made: Made, monkeypatch: pytest.MonkeyPatch, at_leisure: bool
) -> None:
    for name, length in (("_SHORT", 2), ("_LONG", 8), ("_LONGEST", 16)):
        monkeypatch.setattr(measuring, name, length)
    seconds = measuring.AT_LEISURE_S if at_leisure else measuring.seconds_left(0.0)
    session = OnnxRuntimeSession(made.bundle.graph("text"))
    times = measuring.measure(made.bundle, "text", {"ort-cpu": session}, seconds)
    session.close()
    assert times.batches == ["1 x 2", "1 x 8", "8 x 8", *["8 x 16"] * at_leisure]


def test_the_first_load_measures_and_the_next_reads(
    made: Made, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with load(made.bundle.folder, threads=1) as first:
        assert first.reason.count(" measured ") == 2
    times = {m: read_times(conditions(made.bundle, m)) for m in ("image", "text")}
    assert times["image"] is not None
    assert times["text"] is not None
    assert times["text"].batches == ["1 x 16", "1 x 32", "8 x 32"]
    assert times["image"].batches == ["1", "8"]
    assert set(times["text"].milliseconds) == {"ort-cpu", "openvino"}
    monkeypatch.setattr(opening, "measure", None)
    with load(made.bundle.folder, threads=1) as second:
        assert second.reason == first.reason in second.describe()
        for modality in second.modalities:
            assert second.session(modality).backend == first.session(modality).backend
    assert len(list(cache.iterdir())) == 2


def test_a_record_decides_for_each_modality(made: Made) -> None:
    keep(made.bundle, "image", 2.0, 1.0)
    keep(made.bundle, "text", 1.0, 2.0)
    choice, sessions = open_sessions(made.bundle, ["image", "text"], AUTO)
    assert {m: session.backend for m, session in sessions.items()} == {"image": "openvino", "text": "ort-cpu"}
    assert choice.backend == "openvino for image, ort-cpu for text"
    assert choice.reason == (
        "image: openvino, measured 1.00 ms against 2.00 ms with ort-cpu (2026-11-30); "
        "text: ort-cpu, measured 1.00 ms against 2.00 ms with openvino (2026-11-30)"
    )
    for session in sessions.values():
        session.close()
    # ONNX Runtime takes less memory: it wins if both are level.
    keep(made.bundle, "image", 1.02, 1.0)
    assert choose(made.bundle, AUTO, ["image"]).backends == {"image": "ort-cpu"}
    keep(made.bundle, "image", 1.1, 1.0)
    assert choose(made.bundle, AUTO, ["image"]).backends == {"image": "openvino"}
    # A named backend is taken, whatever was measured.
    assert choose(made.bundle, BackendOptions("ort-cpu")).reason == "asked for by name"


@pytest.mark.parametrize("other", OTHER_CONDITIONS, ids=lambda other: next(iter(other)))
def test_a_record_of_other_conditions_decides_nothing(made: Made, other: dict[str, Any]) -> None:
    here = conditions(made.bundle, "text")
    there = dataclasses.replace(here, **other)
    assert there.path != here.path
    times = BackendTimes(["1"], {"ort-cpu": [2.0], "openvino": [1.0]}, "2026-11-30")
    write_times(there, times)
    assert read_times(here) is None
    assert "ort-cpu by rule" in choose(made.bundle, AUTO, ["text"]).reason
    # Nor if its file was copied over ours.
    here.path.write_bytes(there.path.read_bytes())
    assert read_times(here) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
        lambda text: text.replace("openvino", "\ud800openvino".encode("utf-16", "surrogatepass").hex()),
        lambda text: text.replace("1.0", "-1.0"),
        lambda text: text.replace("1.0", '"fast"'),
    ],
)
def test_a_record_that_cannot_be_used_is_ignored_and_measured_anew(
    made: Made, spoil: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    keep(made.bundle, "text", 2.0, 1.0)
    path = conditions(made.bundle, "text").path
    path.write_text(spoil(path.read_text()))
    assert "ort-cpu by rule" in choose(made.bundle, AUTO, ["text"]).reason
    assert [record.getMessage().startswith("The record of backends' times ") for record in caplog.records] == [True]
    with load(made.bundle.folder, threads=1, modalities=["text"]) as embedder:
        assert " measured " in embedder.reason
    assert read_times(conditions(made.bundle, "text")) is not None


def test_a_cache_that_cannot_be_written_costs_a_measurement_at_every_start(
    made: Made, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file")
    for _ in range(2):
        with load(made.bundle.folder, threads=1, modalities=["text"]) as embedder:
            assert " measured " in embedder.reason
            assert embedder.embed("text", ["omega"]).shape == (1, 48)
    assert "cannot be kept for the next start" in caplog.text


def test_what_is_large_or_must_not_be_measured_goes_by_rule(
    made: Made, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name, value in (("_LARGEST", 1000), ("_MEMORY_OF_BATCHES", 1 << 50)):
        with monkeypatch.context() as patch:
            patch.setattr(measuring, name, value)
            with load(made.bundle.folder, threads=1, modalities=["text"]) as embedder:
                assert embedder.reason.startswith("text: ort-cpu by rule")
    monkeypatch.setenv(MEASURE_VARIABLE, "never")
    with load(made.bundle.folder, threads=1, modalities=["text"]) as embedder:
        assert embedder.reason.startswith("text: ort-cpu by rule")
    assert "take long to open twice" in caplog.text
    assert "of memory are too few" in caplog.text
    assert "FLUXTALK_MEASURE forbids it" in caplog.text
    assert not cache.exists()


def test_a_backend_that_does_not_start_is_passed_over(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Session:
        raise BackendError("openvino is installed but cannot be imported.")

    monkeypatch.setattr(opening, "OpenVinoSession", broken)
    with load(made.bundle.folder, threads=1, modalities=["text"]) as embedder:
        assert embedder.session("text").backend == "ort-cpu"
        assert "openvino was passed over: openvino is installed but cannot be imported." in embedder.reason
    with pytest.raises(BackendError, match="cannot be imported"):
        load(made.bundle.folder, "openvino")


def test_a_backend_that_is_wrong_here_is_not_taken(made: Made) -> None:
    times = BackendTimes(
        ["1"], {"ort-cpu": [2.0]}, "2026-11-30", {"openvino": "it does not reproduce the golden vectors"}
    )
    write_times(conditions(made.bundle, "text"), times)
    choice = choose(made.bundle, AUTO, ["text"])
    assert choice.backends == {"text": "ort-cpu"}
    assert choice.reason.endswith("openvino is left out: it does not reproduce the golden vectors")


def test_every_session_but_those_taken_is_closed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Session] = []
    closed: list[Session] = []
    real = opening.open_session

    def counted(*given: Any) -> Session:
        session = real(*given)
        opened.append(session)
        close = session.close

        def counted_close() -> None:
            closed.append(session)
            close()

        monkeypatch.setattr(session, "close", counted_close)
        return session

    monkeypatch.setattr(opening, "open_session", counted)
    _, sessions = open_sessions(made.bundle, ["image", "text"], AUTO)
    assert len(opened) == 4
    assert {id(s) for s in opened} - {id(s) for s in closed} == {id(s) for s in sessions.values()}
    for session in sessions.values():
        session.close()


def test_workers_of_a_server_agree_and_say_why(made: Made, tmp_path: Path, cache: Path) -> None:
    """The supervisor measures once, before the workers start, in a process of its own."""
    with running(made.bundle.folder, tmp_path / "log", "--workers", 2) as up, up.client() as client:
        up.wait_until_ready()
        reasons = {client.get("/info").json()["backend_reason"] for _ in range(8)}
        assert len(reasons) == 1
        assert reasons.pop().count(" measured ") == 2
        assert up.end() == 0
    kept = [json.loads(path.read_text()) for path in cache.iterdir()]
    options = ServerSettings(made.bundle.folder, workers=2).backend_of_worker
    assert sorted(record["conditions"]["graph"] for record in kept) == sorted(
        conditions(made.bundle, m, options).graph for m in ("image", "text")
    )
    assert {record["conditions"]["threads"] for record in kept} == {options.threads}
