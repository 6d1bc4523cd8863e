"""The noise of float32, the promise that follows, and the module in which a difference arises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fluxtalk.artifacts.bundle import ModalityEntry, TensorSpec
from fluxtalk.errors import ParityError, UsageError
from fluxtalk.export.graph.layers import detach, graph_difference
from fluxtalk.export.graph.noise import measure_noise
from fluxtalk.export.graph.to_onnx import export_onnx
from fluxtalk.model.eager_embedder import EagerEmbedder
from fluxtalk.model.encoders import FrozenEncoder
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.preprocess import ImagePreprocessor
from fluxtalk.runtime.verify import promised
from fluxtalk.scoring.noise import CEILING, CEILING_DIM, FLOOR, Float32Noise, ceiling, float32_tolerance
from fluxtalk.scoring.parity import TOLERANCES, OutputDifference, promise_of
from tests.conftest import Made
from tests.export.graphs import embed

SIZE = ImagePreprocessor(32, 32)


class Cancelling(nn.Module):
    """Adds a large number and takes it off again, which costs float32 its last digits."""

    def __init__(self, large: float) -> None:
        super().__init__()
        self.large = large

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.large) - self.large


class Casting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() * 2


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(1)


class Encoder(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.middle = middle
        self.last = nn.Linear(16, 16)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.last(self.middle(self.stem(pixels).flatten(2).transpose(1, 2)))
        return features


def embedder(middle: nn.Module) -> EagerEmbedder:
    torch.manual_seed(0)
    head = RegisterTokenModule({"image": 16}, dim=32, heads=4)
    return EagerEmbedder(FrozenEncoder(Encoder(middle), SIZE, 16), head, "image")


def pixels(count: int = 6) -> dict[str, np.ndarray]:
    return {"pixels": np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)}


def test_a_quiet_graph_promises_the_floor_or_four_times_its_noise() -> None:
    noise = measure_noise(embedder(nn.Identity()), [pixels()], threads=(1, 2))
    assert noise.embeddings is not None
    assert 0 < noise.embeddings < FLOOR
    assert set(noise.threads) == {"1", "2"}
    assert noise.promise == max(FLOOR, 4 * noise.embeddings)
    assert noise.tolerance.max_abs == noise.tolerance.rows == noise.promise
    assert torch.get_num_threads() == 1


def test_a_loud_graph_promises_more_and_one_too_loud_is_refused_by_its_module() -> None:
    noise = measure_noise(embedder(Cancelling(32.0)), [pixels()], threads=(1,))
    assert FLOOR < noise.promise <= CEILING
    with pytest.raises(ParityError, match=r"arises most in encoder\.encoder\.middle \(Cancelling\), from .*e-0[78]"):
        measure_noise(embedder(Cancelling(1e4)), [pixels()], threads=(1,))


def test_narrow_tokens_may_move_as_far_as_the_same_relative_error_moves_them() -> None:
    rng = np.random.default_rng(0)
    moved = {}
    for dim in (32, 64, CEILING_DIM):
        exact = rng.standard_normal((4000, dim))
        off = exact * (1 + 1e-4 * rng.standard_normal(exact.shape))
        unit, wrong = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (exact, off))
        moved[dim] = np.square(wrong - unit).mean() ** 0.5
    for dim, error in moved.items():
        assert error / moved[CEILING_DIM] == pytest.approx(ceiling(dim) / CEILING, rel=0.05)
    assert ceiling(2 * CEILING_DIM) == CEILING
    # Tokens of 64 numbers of a real EfficientNet and of a head that was trained on icons.
    noise = Float32Noise.measured({"1": 2.7e-6, "2": 2.6e-6}, 2.1e-6)
    assert noise.too_large(CEILING_DIM)
    assert not noise.too_large(64)
    assert noise.tolerance.max_abs == noise.promise == pytest.approx(1.08e-5)
    # Another library may not be held to less than ONNX Runtime is.
    held = float32_tolerance(TOLERANCES["fp32"], [Float32Noise(), noise])
    assert held.max_abs == held.prefix == held.rows == noise.promise
    assert float32_tolerance(TOLERANCES["fp32"], [Float32Noise()]) == TOLERANCES["fp32"]


def test_a_model_that_casts_inside_has_no_reference_and_promises_the_floor() -> None:
    noise = measure_noise(embedder(Casting()), [pixels()], threads=(1,))
    assert noise.embeddings is None
    assert noise.promise == FLOOR
    # float64 weights do not take what was cast, so the model does not even run.
    assert "does not run in float64" in noise.no_reference or "another type" in noise.no_reference


def test_a_graph_with_a_random_operator_is_refused_by_operator_and_module() -> None:
    with pytest.raises(UsageError, match=r"RandomNormal\w* in encoder\.encoder\.middle \(Drawing\)"):
        export_onnx(embedder(Drawing()), SIZE, pixels(2))


def test_the_module_in_which_a_graph_leaves_eager_is_named() -> None:
    eager = embedder(nn.GELU())
    batch = pixels()
    model = export_onnx(eager, SIZE, batch)
    layers = detach(model)
    assert not model.metadata_props
    # Another activation than eager's, as a wrong conversion would give.
    gelu = next(node for node in model.graph.node if node.output[0] == layers["encoder.encoder.middle"])
    gelu.CopyFrom(onnx.helper.make_node("Relu", gelu.input, gelu.output, gelu.name))
    found = embed(model, batch)["embeddings"]
    _, expected = eager.embed_arrays(batch, 4)
    line = graph_difference(eager, model, layers, batch, found, expected)
    assert line.startswith("arises most in encoder.encoder.middle (GELU), from ")


def test_the_manifest_holds_noise_and_promise_and_the_verifier_keeps_it(made: Made) -> None:
    content = json.loads((made.bundle.folder / "manifest.json").read_text())
    for modality, entry in made.bundle.manifest.modalities.items():
        assert content["modalities"][modality]["float32"] == entry.float32.to_dict()
        assert entry.float32.embeddings is not None

        class On:
            backend = "ort-cpu"

        assert promised(made.bundle, modality, "fp32", On()).max_abs == entry.float32.promise  # type: ignore[arg-type]
        On.backend = "tensorrt"
        assert promised(made.bundle, modality, "fp32", On()).max_abs == CEILING  # type: ignore[arg-type]


def test_a_bundle_from_before_opens_with_the_floor() -> None:
    entry = ModalityEntry({"fp32": "a.onnx"}, [TensorSpec("pixels", "uint8", ["batch"])], None, {}, {}).to_dict()
    del entry["float32"]
    assert ModalityEntry.from_json(entry).float32 == Float32Noise()
    assert Float32Noise().promise == FLOOR


def test_a_lower_precision_promises_twice_its_error_within_limits() -> None:
    measured = OutputDifference(4e-3, 3e-4, 0.9998)
    promise = promise_of("fp16", TOLERANCES["fp16"], [measured, OutputDifference(1e-5, 1e-6, 1.0)])
    assert (promise.max_abs, promise.mean_abs) == (8e-3, 6e-4)
    assert promise.min_cosine == pytest.approx(1 - 4 * 2e-4)
    assert not measured.violations(promise)
    exact = promise_of("fp16", TOLERANCES["fp16"], [OutputDifference(0.0, 0.0, 1.0)])
    assert 0.9999 < exact.min_cosine < 1
    broken = OutputDifference(0.5, 0.1, 0.5)
    assert broken.violations(promise_of("fp16", TOLERANCES["fp16"], [broken]))
    nan = OutputDifference(float("inf"), float("inf"), -1.0)
    assert nan.violations(promise_of("int8", TOLERANCES["int8"], [nan]))


def test_graphs_carry_nothing_of_the_tracing(made: Made) -> None:
    for path in Path(made.bundle.folder).glob("*.onnx"):
        model = onnx.load(path)
        assert not model.metadata_props
        assert not any(node.metadata_props for node in model.graph.node)
