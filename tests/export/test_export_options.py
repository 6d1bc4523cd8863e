"""Truncated bundles, attention maps and external data, as a user of the bundle meets them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fluxtalk.artifacts.bundle import Bundle, read_bundle
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import BundleError, TokenCountError, UsageError
from fluxtalk.export.graph.to_onnx import graph_files
from fluxtalk.export.graph.trace import sample_batch
from fluxtalk.export.options import ExportOptions
from fluxtalk.export.write_bundle import write_bundle
from fluxtalk.model.encoders import SmallImageEncoder, SmallTextEncoder
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.runtime import load
from fluxtalk.runtime.backends.onnxruntime_session import OnnxRuntimeSession
from tests.conftest import Made

TEXTS = ["latin small letter a", "greek capital letter omega with tonos", "snowman"]


@pytest.fixture(scope="module")
def cut(made: Made, table_data: PairDataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shared run's bundle, of two tokens and with attention."""
    folder = tmp_path_factory.mktemp("cut") / "bundle"
    return write_bundle(made.run, table_data, folder, ExportOptions(tokens=2, attention=True))


def test_a_bundle_of_two_tokens_is_the_first_two_of_the_whole_and_smaller(
    made: Made, cut: Bundle, table_data: PairDataset, tmp_path: Path
) -> None:
    assert cut.manifest.num_register_tokens == cut.manifest.num_overlapping_tokens == 2
    assert cut.manifest.trained_register_tokens == 4
    assert cut.manifest.head_hash == made.bundle.manifest.head_hash
    for modality in ("image", "text"):
        assert cut.graph(modality).stat().st_size < made.bundle.graph(modality).stat().st_size
    with load(cut.folder) as two, load(made.bundle.folder) as four:
        for k in (1, 2):
            apart = two.embed("text", TEXTS, k) - four.embed("text", TEXTS, k)
            assert np.abs(apart).max() <= 1e-6
        with pytest.raises(TokenCountError, match="from 1 to 2"):
            two.embed("text", TEXTS, 3)
        with pytest.raises(UsageError, match="no complementary"):
            two.embed("text", TEXTS, output="complementary")
    for tokens in (0, 5):
        with pytest.raises(TokenCountError, match="from 1 to 4"):
            write_bundle(made.run, table_data, tmp_path / "none", ExportOptions(tokens=tokens))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output_projection": "per_register", "self_attention": True, "depth": 2},
        {"block_weights": "per_modality"},
        # More registers times heads than dimensions: the plain form of cross-attention.
        {"num_register_tokens": 12, "heads": 8},
    ],
)
def test_a_truncated_head_gives_the_first_tokens(options: dict[str, Any]) -> None:
    head = RegisterTokenModule({"image": 6, "text": 5}, dim=32, **{"heads": 4, **options}).double().eval()
    features, mask = torch.randn(3, 7, 6).double(), torch.rand(3, 7) < 0.7
    total = head.config.num_register_tokens
    whole = head.tokens("image", features, mask, torch.arange(total))
    for count in (1, 2, total):
        part = head.truncated(count)
        assert not part.training
        assert part.config.num_overlapping_tokens == min(count, 3)
        found = part.double().tokens("image", features, mask, torch.arange(count))
        torch.testing.assert_close(found, whole[:, :count], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"depth": 2, "self_attention": True}, {"num_register_tokens": 12, "heads": 8}])
def test_attention_says_where_each_register_looked(options: dict[str, Any]) -> None:
    head = RegisterTokenModule({"image": 6}, dim=32, **{"heads": 4, **options}).eval()
    features, mask = torch.randn(3, 7, 6), torch.rand(3, 7) < 0.7
    mask[:, 2] = True
    index = torch.arange(3)
    tokens, attention = head.tokens_and_attention("image", features, mask, index)
    torch.testing.assert_close(tokens, head.tokens("image", features, mask, index), rtol=0, atol=1e-6)
    assert attention.shape == (3, 3, 7)
    assert not attention.masked_select(~mask[:, None].expand_as(attention)).any()
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(3, 3))
    # A feature that gets all of the attention is the one that the register depends on.
    loud = features.detach().requires_grad_()
    head.tokens("image", loud, mask, index)[0].sum().backward()
    assert loud.grad is not None
    assert not loud.grad[0][~mask[0]].any()


def test_a_bundle_with_attention_serves_it(made: Made, cut: Bundle) -> None:
    assert read_bundle(cut.folder).manifest.outputs == ["tokens", "embeddings", "attention"]
    batch = sample_batch(made.run.stage1.modalities["text"].preprocess, TEXTS)
    embedder = made.run.embedder("text")
    features = embedder.encoder(torch.from_numpy(batch["input_ids"]), torch.from_numpy(batch["mask"]))
    _, expected = embedder.read_with_attention(features, torch.arange(2))
    session = OnnxRuntimeSession(cut.graph("text"))
    found = session.run(batch, 2, ["attention"])
    assert list(found) == ["attention"]
    np.testing.assert_allclose(found["attention"], expected.detach().numpy(), rtol=0, atol=1e-6)
    assert not found["attention"][~np.broadcast_to(batch["mask"][:, None], found["attention"].shape)].any()


def test_large_weights_lie_beside_the_graph_and_are_hashed(made: Made, tmp_path: Path) -> None:
    preprocess = made.run.stage1.modalities["text"].preprocess
    batch = sample_batch(preprocess, TEXTS)
    graph_files(onnx.load(made.bundle.graph("text")), tmp_path, "text.onnx", limit=10_000)
    assert {file.name for file in tmp_path.iterdir()} == {"text.onnx", "text.onnx.data"}
    locations = {
        entry.value
        for tensor in onnx.load(tmp_path / "text.onnx", load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {"text.onnx.data"}
    inside, beside = OnnxRuntimeSession(made.bundle.graph("text")), OnnxRuntimeSession(tmp_path / "text.onnx")
    for k in (1, 4):
        np.testing.assert_array_equal(inside.run(batch, k)["embeddings"], beside.run(batch, k)["embeddings"])
    # Nor does a loaded graph notice what becomes of them.
    with (tmp_path / "text.onnx.data").open("r+b") as file:
        file.write(bytes((tmp_path / "text.onnx.data").stat().st_size))
        np.testing.assert_array_equal(inside.run(batch, k)["embeddings"], beside.run(batch, k)["embeddings"])
        file.truncate(0)
        np.testing.assert_array_equal(inside.run(batch, k)["embeddings"], beside.run(batch, k)["embeddings"])


def test_every_byte_of_a_bundle_counts(made: Made, tmp_path: Path) -> None:
    names = sorted(file.name for file in made.bundle.folder.iterdir())
    assert {"manifest.json", "golden.safetensors", "quality.json", "text.fp32.onnx"} <= set(names)
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        for other in names:
            content = bytearray((made.bundle.folder / other).read_bytes())
            if other == name:
                # A digit or letter that keeps JSON valid.
                where = max(i for i, byte in enumerate(content) if chr(byte).isalnum())
                content[where] = ord("1") if content[where] != ord("1") else ord("2")
            (folder / other).write_bytes(content)
        with pytest.raises(BundleError, match="manifest.json" if name == "manifest.json" else name.replace(".", r"\.")):
            read_bundle(folder)


def test_manifest_says_recall_bytes_and_latency(made: Made) -> None:
    content = json.loads((made.bundle.folder / "manifest.json").read_text())
    serving = content["precisions"]["fp32"]["serving"]
    assert serving["recall"].keys() == {"text->image", "image->text"}
    assert serving["recall"]["text->image"].keys() == {"1", "2", "3", "4"}
    assert all(0 < ms < 1000 for by_k in serving["latency_ms"].values() for ms in by_k.values())
    assert content["bytes_per_item"] == {
        "pooled": dict.fromkeys("1234", 192),
        "concat": {"1": 192, "2": 384, "3": 576, "4": 576},
        "tokens": {"1": 192, "2": 384, "3": 576, "4": 768},
        "complementary": {"4": 192},
    }


built: list[str] = []


def counted_image(**options: Any) -> SmallImageEncoder:
    """An encoder whose constructions are counted."""
    built.append("image")
    return SmallImageEncoder(**options)


def counted_text(**options: Any) -> SmallTextEncoder:
    """The same of text."""
    built.append("text")
    return SmallTextEncoder(**options)


def test_export_builds_each_encoder_once(made: Made, table_data: PairDataset, tmp_path: Path) -> None:
    parts = {
        modality: dataclasses.replace(
            part, spec=dataclasses.replace(part.spec, source=f"module:{__name__}:counted_{modality}")
        )
        for modality, part in made.run.stage1.modalities.items()
    }
    run = dataclasses.replace(made.run, stage1=dataclasses.replace(made.run.stage1, modalities=parts))
    built.clear()
    options = ExportOptions(("fp32", "fp16"), allow_quality_loss=True)
    bundle = write_bundle(run, table_data, tmp_path / "bundle", options)
    assert list(bundle.manifest.precisions) == ["fp32", "fp16"]
    assert sorted(built) == ["image", "text"]
