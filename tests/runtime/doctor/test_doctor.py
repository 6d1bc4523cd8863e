"""`fluxtalk doctor`: real trials of a bundle, and recommendations from given figures."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from fluxtalk.artifacts.bundle import Bundle, PrecisionEntry, read_bundle, write_manifest
from fluxtalk.artifacts.files import hash_file
from fluxtalk.errors import BackendError
from fluxtalk.runtime.backends.choose import BackendChoice
from fluxtalk.runtime.backends.options import BACKENDS, BackendOptions
from fluxtalk.runtime.doctor import cli
from fluxtalk.runtime.doctor.advice import Goal, recall_curves, recommend, speed_advice
from fluxtalk.runtime.doctor.examine import Diagnosis, examine
from fluxtalk.runtime.doctor.trial import Latency, Trial, find_refusals, in_subprocess, run_trial, tried_ks
from fluxtalk.scoring.parity import TOLERANCES
from tests.conftest import Made

OPENVINO = importlib.util.find_spec("openvino") is not None


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what doctor measures from other tests, whose backend it would choose."""
    monkeypatch.setenv("FLUXTALK_CACHE_DIR", str(tmp_path / "user-cache"))


@pytest.fixture(scope="module")
def examined(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Diagnosis]:
    """A whole examination, as JSON and as it is."""
    found: list[Diagnosis] = []

    def kept(*arguments: Any) -> Diagnosis:
        found.append(examine(*arguments))
        return found[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXTALK_CACHE_DIR", str(tmp_path_factory.mktemp("user-cache")))
        patch.setattr(cli, "examine", kept)
        done = CliRunner().invoke(cli.main, [str(made.bundle.folder), "--json", "--threads", "1"])
    assert done.exit_code == 0, done.stderr
    return done, found[0]


def test_a_whole_examination(examined: tuple[Result, Diagnosis]) -> None:
    """Backends that run are measured, the others say why not; and one is recommended."""
    found = json.loads(examined[0].stdout)
    assert found["holds"]
    trials = {(trial["backend"], trial["precision"]): trial for trial in found["trials"]}
    assert ("ort-cpu", "fp32") in trials
    assert (("openvino", "fp32") in trials) == OPENVINO
    # Every backend either has a trial or is refused.
    assert {backend for backend, _ in trials} | set(found["refused"]) == set(BACKENDS[1:])
    for trial in trials.values():
        assert len(trial["parity"]) == 8
        assert trial["holds"]
        cells = {(cell["modality"], cell["length"], cell["k"]) for cell in trial["latency"]}
        assert cells == {
            *(("image", None, k) for k in (1, 2, 3, 4)),
            *(("text", length, k) for length in (2, 8, 32) for k in (1, 2, 3, 4)),
        }
        assert all(cell["ms"] > 0 for cell in trial["latency"])
        if os.path.exists("/proc/self/status"):
            assert 20e6 < trial["resident_bytes"] < 2e9
    chosen = found["recommendation"]
    assert (chosen["backend"], chosen["precision"]) in trials
    assert chosen["recall_share"] >= 0.99
    assert f"--backend {chosen['backend']} --precision {chosen['precision']} and k = {chosen['k']}" in found["because"]
    assert set(found["auto"]["backends"]) == {"image", "text"}
    if OPENVINO and "GPU" not in found["auto"]["reason"]:
        assert found["auto"]["unmeasured"] == {}
        assert len(re.findall(r"measured [0-9.]+ ms against [0-9.]+ ms with ", found["auto"]["reason"])) == 2
    assert any(sentence.startswith("Shorter inputs: text of length 2 takes ") for sentence in found["faster"])


def test_it_reads_well(examined: tuple[Result, Diagnosis]) -> None:
    said = cli.report(examined[1])
    for words in (
        "ort-cpu      fp32       holds",
        "text of length 32, ms: ",
        "(k=4)",
        "- tensorrt (fp32): ",
        "Serve with",
    ):
        assert words in said


def test_broken_parity_is_exit_code_1(made: Made, tmp_path: Path) -> None:
    """The bundle has golden vectors of another head, and correct hashes."""
    folder = tmp_path / "bundle"
    shutil.copytree(made.bundle.folder, folder)
    golden = folder / made.bundle.manifest.golden
    arrays = load_file(golden)
    arrays["text.embeddings"] = np.roll(arrays["text.embeddings"], 1, axis=-1)
    save_file(arrays, golden)
    files = {**made.bundle.manifest.files, golden.name: hash_file(golden)}
    write_manifest(folder, dataclasses.replace(made.bundle.manifest, files=files))
    done = CliRunner().invoke(cli.main, [str(folder), "--backend", "ort-cpu", "--threads", "1"])
    assert done.exit_code == 1
    assert "ort-cpu      fp32       BROKEN" in done.stdout
    assert "Nothing is recommended: no backend reproduces the golden vectors." in done.stdout
    assert "Parity is broken in 1 of 1 trials" in done.stderr
    assert "ort-cpu in fp32: text: max_abs is" in done.stderr


def test_where_nothing_runs(made: Made) -> None:
    found = in_subprocess(find_refusals, made.bundle.folder, BackendOptions("tensorrt"), ["fp32"])
    if not found:
        pytest.skip("TensorRT runs here")
    with pytest.raises(BackendError, match=r"No backend runs .* here: .*TensorRT"):
        examine(made.bundle.folder, Goal(), [BackendOptions("tensorrt")])


def test_a_crash_is_a_finding() -> None:
    with pytest.raises(BackendError, match="ended the process that tried it"):
        in_subprocess(os._exit, 3)


def test_memory_is_that_of_one_process(made: Made) -> None:
    """This process holds torch, which a trial does not."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("there is no /proc here")
    trial = in_subprocess(run_trial, made.bundle.folder, BackendOptions("ort-cpu", "fp32", threads=1))
    own = 4096 * int(Path("/proc/self/statm").read_text().split()[1])
    assert trial.resident_bytes is not None
    assert trial.resident_bytes < own


# The tests from here on time nothing: their figures are given.


def trial(backend: str, precision: str, by_k: dict[int, float], broken: bool = False) -> Trial:
    """Make a trial with these milliseconds by k, and a quarter of them for a text of an eighth of the length."""
    latency = [
        Latency("text", length, k, ms / 4 if length == 4 else ms) for length in (4, 32) for k, ms in by_k.items()
    ]
    parity: list[dict[str, Any]] = [{"modality": "text", "broken": ["max_abs is 1"] if broken else []}]
    return Trial(backend, precision, None, {}, parity, latency, 0.1, None)


def with_curves(bundle: Bundle, **curves: dict[str, float]) -> Bundle:
    """Give a bundle these precisions, with Recall@10 by k, and a second direction whose recall is always 1."""
    entries = {
        name: PrecisionEntry(
            TOLERANCES[name],
            serving={
                "recall": {
                    "a->b": {k: {"1": 0.0, "10": share} for k, share in curve.items()},
                    "b->a": {k: {"1": 0.0, "10": 1.0} for k in curve},
                }
            }
            if curve
            else {},
        )
        for name, curve in curves.items()
    }
    modalities = {
        name: dataclasses.replace(entry, graphs=dict.fromkeys(entries, entry.graphs["fp32"]))
        for name, entry in bundle.manifest.modalities.items()
    }
    changed = dataclasses.replace(bundle.manifest, precisions=entries, modalities=modalities)
    return dataclasses.replace(bundle, manifest=changed)


FLAT = {1: 2.0, 2: 2.0, 3: 2.0, 4: 2.0}
STEEP = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}


def test_the_k_for_a_recall_a_time_or_a_size(made: Made) -> None:
    bundle = with_curves(
        made.bundle,
        fp32={"1": 0.40, "2": 0.72, "3": 0.80, "4": 0.80},
        int8={"1": 0.36, "2": 0.64, "3": 0.76, "4": 0.76},
    )
    assert recall_curves(bundle)["fp32"] == pytest.approx({1: 0.5, 2: 0.9, 3: 1.0, 4: 1.0})
    # int8 is compared with the full recall of the best precision.
    assert recall_curves(bundle)["int8"] == pytest.approx({1: 0.45, 2: 0.8, 3: 0.95, 4: 0.95})
    trials = [trial("ort-cpu", "fp32", STEEP), trial("openvino", "int8", {k: ms / 2 for k, ms in STEEP.items()})]

    def chosen(*goal: Any) -> tuple[str, int] | None:
        found, _ = recommend(bundle, trials, Goal(*goal))
        return (found.precision, found.k) if found is not None else None

    assert chosen(0.99) == ("fp32", 3)
    assert chosen(0.9) == ("int8", 3)
    assert chosen(0.8) == ("int8", 2)
    assert chosen(0.4) == ("int8", 1)
    # Without a recall to reach, the best recall within the limit wins.
    assert chosen(None, 10.0) == ("fp32", 3)
    assert chosen(None, 2.5) == ("int8", 3)
    assert chosen(None, 1.2) == ("int8", 2)
    # 48 numbers of 4 bytes for each overlapping token.
    assert chosen(None, None, 400) == ("fp32", 2)
    assert chosen(0.9, 1.5, 600) == ("int8", 3)
    assert chosen(0.99, 1.5) is None
    assert recommend(bundle, trials, Goal(0.99, 1.5))[1] == (
        "Nothing reaches 99 % of the full recall within 1.5 ms: the fastest takes 0.50 ms, the best has 100.0 %."
    )
    assert (
        "the smallest takes 192 bytes (store int8 or binary: --dtype)"
        in recommend(bundle, trials, Goal(None, None, 9))[1]
    )


def test_fewer_tokens_that_find_more_are_as_good_as_all(made: Made) -> None:
    """With few queries, one can decide: the full recall is that of all tokens in the most exact precision."""
    bundle = with_curves(
        made.bundle,
        int8={"1": 0.90, "2": 0.93, "3": 0.93, "4": 0.93},
        fp32={"1": 1.00, "2": 0.93, "3": 0.93, "4": 0.93},
    )
    assert recall_curves(bundle)["fp32"] == pytest.approx({1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0})
    assert recall_curves(bundle)["int8"][1] == pytest.approx(0.90 / 0.93)
    found, _ = recommend(bundle, [trial("ort-cpu", "fp32", STEEP)], Goal(0.99))
    assert found is not None
    assert found.k == 1


def test_what_breaks_parity_is_never_recommended(made: Made) -> None:
    bundle = with_curves(made.bundle, fp32={"1": 0.5, "2": 0.5, "3": 0.5, "4": 0.5})
    trials = [trial("openvino", "fp32", dict.fromkeys(FLAT, 0.1), broken=True), trial("ort-cpu", "fp32", FLAT)]
    found, why = recommend(bundle, trials, Goal(0.99))
    assert found is not None
    assert (found.backend, found.k) == ("ort-cpu", 1)
    assert why == (
        "Serve with --backend ort-cpu --precision fp32 and k = 1: 2.00 ms, 100.0 % of the full recall, "
        "192 bytes for an item's overlapping tokens."
    )


def test_a_bundle_without_a_recall_curve(made: Made) -> None:
    bundle = with_curves(made.bundle, fp32={})
    found, why = recommend(bundle, [trial("ort-cpu", "fp32", STEEP)], Goal(0.9))
    assert found is None
    assert "it was exported without held-out pairs; export the run again with --eval-data" in why
    found, _ = recommend(bundle, [trial("ort-cpu", "fp32", STEEP)], Goal(None, 2.5))
    assert found is not None
    assert found.recall_share is None


def test_what_would_make_it_faster(made: Made) -> None:
    missing = {"openvino": {"fp32": "The backend openvino needs OpenVINO, which is not installed; pip install it."}}
    auto = BackendChoice({"image": "ort-cpu", "text": "ort-cpu"}, "fp32", "")

    def said(trials: list[Trial], one_thread: Trial | None = None, gpu: str | None = None, cores: int = 2) -> str:
        return "\n".join(
            speed_advice(made.bundle, trials, missing if len(trials) < 2 else {}, one_thread, auto, cores, gpu)
        )

    alone = said([trial("ort-cpu", "fp32", FLAT)])
    assert "Fewer tokens save bytes, not time" in alone
    assert "text of length 4 takes 0.50 ms, of length 32 2.00 ms" in alone
    assert "pip install 'fluxtalk[openvino]'" in alone
    assert "--precision int8" in alone
    assert "There is no NVIDIA GPU here" in alone
    both = said(
        [trial("ort-cpu", "fp32", STEEP), trial("openvino", "fp32", {k: 1.0 + k / 4 for k in STEEP})], gpu="8.9"
    )
    assert "Name --backend openvino --precision fp32: 2.00 ms instead of 4.00 ms with ort-cpu in fp32" in both
    assert "k = 1 takes 1.25 ms, k = 4 2.00 ms" in both
    assert f"fluxtalk-export trt {made.bundle.folder}" in both
    assert "fluxtalk[openvino]" not in both
    slower = said([trial("ort-cpu", "fp32", FLAT)], trial("ort-cpu", "fp32", dict.fromkeys(FLAT, 1.0)))
    assert "Serve with --threads 1: 1.00 ms instead of 2.00 ms" in slower
    assert "one core" in said([trial("ort-cpu", "fp32", FLAT)], cores=1)


def test_the_k_that_are_tried(made: Made) -> None:
    assert tried_ks(made.bundle.manifest.layout) == [1, 2, 3, 4]
    many = dataclasses.replace(
        made.bundle.manifest, num_register_tokens=12, trained_register_tokens=12, num_overlapping_tokens=9
    )
    assert tried_ks(many.layout) == [1, 2, 4, 8, 9, 12]
    assert read_bundle(made.bundle.folder).manifest == made.bundle.manifest
