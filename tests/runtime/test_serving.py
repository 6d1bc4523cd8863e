"""A bundle through the library and the command line."""

from __future__ import annotations

import json
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fluxtalk.cli import main
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import BackendError, InputError, TokenCountError, UsageError
from fluxtalk.runtime import FakeSession, load
from fluxtalk.runtime.backends import onnxruntime_session as session_onnxruntime
from fluxtalk.runtime.backends.threads import available_cores
from fluxtalk.runtime.batching import batches_by_length
from tests.conftest import Made


def run(*parts: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in parts])


def one_sentence(done: Result, code: int, *words: str) -> None:
    assert done.exit_code == code, done.output
    assert done.stderr.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("modality", ["image", "text"])
def test_every_output_and_k_equals_eager(made: Made, table_data: PairDataset, modality: str) -> None:
    items = list(table_data.split("test").items[modality].values)[:9]
    tokens, embeddings = made.run.embedder(modality).embed(made.run.stage1.modalities[modality].preprocess, items)
    with load(made.bundle.folder) as embedder:
        for k in range(1, 5):
            pooled = embedder.embed(modality, items, k)
            assert np.abs(pooled - embeddings[:, min(k, 3) - 1]).max() <= 1e-6
            assert np.abs(embedder.embed(modality, items, k, "tokens") - tokens[:, :k]).max() <= 1e-5
            unit = tokens[:, : min(k, 3)] / np.linalg.norm(tokens[:, : min(k, 3)], axis=-1, keepdims=True)
            concatenated = unit.reshape(9, -1) / np.sqrt(min(k, 3))
            assert np.abs(embedder.embed(modality, items, k, "concat") - concatenated).max() <= 1e-5
        assert np.abs(embedder.embed(modality, items, output="complementary") - tokens[:, 3:]).max() <= 1e-5


def test_order_batch_size_and_threads_change_nothing(made: Made, table_data: PairDataset) -> None:
    items = sorted(table_data.split("train").items["text"].values, key=lambda text: hash(text) % 97)
    assert len({len(text.split()) for text in items}) > 3
    with load(made.bundle.folder) as embedder:
        alone = np.concatenate([embedder.embed("text", [item]) for item in items])
        for batch_size in (1, 3, 32):
            assert np.abs(embedder.embed("text", items, batch_size=batch_size) - alone).max() <= 1e-6
        with ThreadPoolExecutor(8) as pool:
            for vectors in pool.map(lambda _: embedder.embed("text", items), range(16)):
                assert np.abs(vectors - alone).max() <= 1e-6
        assert embedder.embed("text", []).shape == (0, 48)
        assert embedder.embed("text", [], 2, "tokens").shape == (0, 2, 48)


def test_items_in_any_kind_of_sequence(made: Made) -> None:
    texts = ["black chess queen", "omega"]
    with load(made.bundle.folder, threads=np.int64(1)) as embedder:  # type: ignore[arg-type]
        expected = embedder.embed("text", texts)
        for items in (tuple(texts), np.array(texts), np.array(texts, dtype=object)):
            assert np.array_equal(embedder.embed("text", items, batch_size=np.int32(2)), expected)  # type: ignore[arg-type]


def test_wrong_calls_are_refused(made: Made) -> None:
    with load(made.bundle.folder) as embedder:
        for k in (0, 5, -1):
            with pytest.raises(TokenCountError, match="from 1 to 4"):
                embedder.embed("text", ["a"], k)
        with pytest.raises(UsageError, match="modality"):
            embedder.embed("audio", ["a"])
        with pytest.raises(UsageError, match="complementary"):
            embedder.embed("text", ["a"], 3, "complementary")
        for items in ("a", b"a", {"a": 1}, {"a"}, deque("ab"), (text for text in "ab"), None, np.array("a")):
            with pytest.raises(UsageError, match=r"items is a list.*\.$"):
                embedder.embed("text", items)  # type: ignore[arg-type]
        for batch_size in ("3", 1.5, True, 0, None):
            with pytest.raises(UsageError, match=r"batch_size is an integer of at least 1; got .*\.$"):
                embedder.embed("text", ["a"], batch_size=batch_size)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="modality"):
            embedder.embed(["text"], ["a"])  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"item 1: .*empty"):
            embedder.embed("text", ["a", " "])
    for threads in (0, 1.5, "2", True, 3000):
        with pytest.raises(UsageError, match=r"threads is an integer from 1 to .*\.$"):
            load(made.bundle.folder, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="backend"):
        load(made.bundle.folder, backend="gpu")
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        load(made.bundle.folder, backend="ort-cuda")


def test_no_onnxruntime_or_two_are_errors_that_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_onnxruntime, "_is_installed", lambda name: True)
    with pytest.raises(BackendError, match="Both onnxruntime and onnxruntime-gpu"):
        session_onnxruntime.import_onnxruntime()
    monkeypatch.setattr(session_onnxruntime, "_is_installed", lambda name: False)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="Neither onnxruntime nor onnxruntime-gpu"):
        session_onnxruntime.import_onnxruntime()


def test_batches_by_length_cover_every_item_with_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 500).tolist()
    batches = list(batches_by_length(lengths, 32))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    for rows in batches:
        assert len(rows) <= 32
        chosen = [lengths[row] for row in rows]
        padded = max(chosen) * len(chosen)
        assert padded - sum(chosen) <= padded / 8


def test_the_fake_session_keeps_the_contract() -> None:
    session = FakeSession()
    ids = np.arange(12).reshape(3, 4)
    mask = np.ones((3, 4), dtype=bool)
    whole = session.run({"input_ids": ids, "mask": mask}, 4)
    prefix = session.run({"input_ids": ids[1:2], "mask": mask[1:2]}, 2)
    for name in ("tokens", "embeddings"):
        assert np.allclose(prefix[name][0], whole[name][1, :2])


def test_cores_respect_the_control_group(tmp_path: Path) -> None:
    assert available_cores(tmp_path) >= 1
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert available_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cores(tmp_path) == available_cores(tmp_path / "none")


def test_the_embed_command(made: Made, table_path: Path, tmp_path: Path) -> None:
    bundle = made.bundle.folder
    output = tmp_path / "v.npy"
    done = run("embed", bundle, "text", "black chess queen", "omega", "-k", 2, "-o", output)
    assert done.exit_code == 0, done.output
    with load(bundle) as embedder:
        expected = embedder.embed("text", ["black chess queen", "omega"], 2)
    assert np.array_equal(np.load(output), expected)
    folder = run("embed", bundle, "image", table_path.parent, "-o", tmp_path / "images.npy")
    assert folder.exit_code == 0, folder.output
    assert len(np.load(tmp_path / "images.npy")) == len(list(table_path.parent.glob("*.png")))


def test_bad_items_leave_no_file(made: Made, tmp_path: Path) -> None:
    bundle, output = made.bundle.folder, tmp_path / "v.npy"
    one_sentence(run("embed", bundle, "text", "", "-o", output), 1, "empty")
    one_sentence(run("embed", bundle, "text", "a", "-k", 9, "-o", output), 2, "from 1 to 4")
    one_sentence(run("embed", bundle, "image", "nope.png", "-o", output), 1, "nope.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    one_sentence(run("embed", bundle, "image", broken, "-o", output), 1, "broken.png")
    one_sentence(run("embed", tmp_path, "text", "a", "-o", output), 1, "is not a bundle")
    one_sentence(run("embed", bundle, "text", "-o", output), 2, "nothing to embed")
    assert not output.exists()


def test_inspect_says_what_anything_is(made: Made, stage1_path: Path, tmp_path: Path) -> None:
    root = made.run.root
    kinds = {
        stage1_path: "stage 1 checkpoint",
        root / "checkpoints" / "best.safetensors": "stage 2 checkpoint",
        root: "run",
        made.bundle.folder: "bundle",
    }
    for path, kind in kinds.items():
        done = run("inspect", path, "--json")
        assert done.exit_code == 0, done.output
        facts = json.loads(done.output)
        assert facts["kind"] == kind
        assert run("inspect", path).output.startswith(f"kind: {kind}")
    one_sentence(run("inspect", tmp_path), 1, str(tmp_path))
