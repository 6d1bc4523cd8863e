"""Vectors in fewer bytes, through the library and alone; where registers looked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import TokenCountError, UsageError
from fluxtalk.runtime import DTYPES, Embedder, hamming, load, maxsim, quantize, similarity
from fluxtalk.runtime.vectors import directions
from tests.conftest import Made

TEXTS = ["black chess queen", "omega", "latin small letter a with grave and more words than the others"]
VECTORS = arrays(np.float32, (5, 19), elements=st.floats(-100, 100, width=32))


def unit(vectors: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1)


@given(VECTORS)
@settings(max_examples=100, deadline=None)
def test_int8_is_127_times_the_vector_over_its_largest_number(vectors: np.ndarray) -> None:
    found = quantize(vectors, "int8")
    assert found.dtype == np.int8
    for row, stored in zip(vectors.astype(np.float64), found, strict=True):
        largest = np.abs(row).max()
        assert np.abs(stored - (127 * row / largest if largest > 0 else 0 * row)).max() <= 0.5 + 1e-4
        if largest > 0:
            assert np.abs(stored).max() == 127


@given(VECTORS)
@settings(max_examples=100, deadline=None)
def test_binary_is_the_signs_and_its_cosine_counts_the_bits_that_differ(vectors: np.ndarray) -> None:
    found = quantize(vectors, "binary")
    assert found.dtype == np.uint8
    assert found.shape == (5, 3)
    assert np.array_equal(np.unpackbits(found, axis=1)[:, :19], vectors > 0)
    assert not np.unpackbits(found, axis=1)[:, 19:].any()
    differing = ((vectors > 0)[:, None] != (vectors > 0)[None]).sum(axis=-1)
    assert np.array_equal(hamming(found, found), differing)
    np.testing.assert_allclose(similarity(found, found), 1 - 2 * differing / 24, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_similarity_is_the_cosine_of_what_was_stored(dtype: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 64)).astype(np.float32), rng.standard_normal((6, 64)).astype(np.float32)
    stored = quantize(b, dtype)
    meant = np.where(b > 0, 1.0, -1.0) if dtype == "binary" else stored.astype(np.float64)
    np.testing.assert_allclose(similarity(a, stored), unit(a) @ unit(meant).T, atol=1e-6)
    np.testing.assert_allclose(similarity(stored, a), similarity(a, stored).T, atol=1e-6)
    assert similarity(a[0], stored).shape == (1, 6)
    # How much each type loses on vectors without any structure.
    worst = {"float32": 1e-6, "float16": 1e-3, "int8": 0.02, "binary": 0.4}[dtype]
    assert np.abs(similarity(a, stored) - similarity(a, b)).max() <= worst


@pytest.mark.parametrize("dtype", DTYPES)
def test_maxsim_is_the_mean_over_query_tokens_of_the_most_similar_item_token(dtype: str) -> None:
    rng = np.random.default_rng(1)
    queries, items = rng.standard_normal((3, 2, 32)), rng.standard_normal((5, 4, 32))
    stored = quantize(items.astype(np.float32), dtype)
    meant = unit(np.where(items > 0, 1.0, -1.0) if dtype == "binary" else stored.astype(np.float64))
    expected = [[np.mean([max(q @ t for t in item) for q in unit(query)]) for item in meant] for query in queries]
    np.testing.assert_allclose(maxsim(queries.astype(np.float32), stored), expected, atol=1e-5)
    assert maxsim(queries[0], stored[0]).shape == (1, 1)


def test_what_cannot_be_meant_is_refused() -> None:
    vectors = np.ones((2, 8), np.float32)
    with pytest.raises(UsageError, match="float32, float16, int8, binary"):
        quantize(vectors, "int4")
    with pytest.raises(UsageError, match="65504"):
        quantize(vectors * 1e5, "float16")
    with pytest.raises(UsageError, match="one dimension"):
        similarity(vectors, np.ones((2, 9), np.float32))
    with pytest.raises(UsageError, match="one dimension"):
        similarity(vectors, quantize(np.ones((2, 9), np.float32), "binary"))
    with pytest.raises(UsageError, match="binary"):
        hamming(vectors, vectors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("output", ["pooled", "concat", "tokens", "complementary"])
def test_embed_gives_every_output_in_every_type(made: Made, output: str, dtype: str) -> None:
    with load(made.bundle.folder) as embedder:
        exact = embedder.embed("text", TEXTS, output=output)
        found = embedder.embed("text", TEXTS, output=output, dtype=dtype)
        assert np.array_equal(found, quantize(exact, dtype))
        alone = embedder.embed("text", TEXTS[:1], output=output, dtype=dtype)
        assert (alone.dtype, alone.shape[1:]) == (found.dtype, found.shape[1:])
        empty = embedder.embed("text", [], output=output, dtype=dtype)
        assert (empty.dtype, empty.shape) == (found.dtype, (0, *found.shape[1:]))
        with pytest.raises(UsageError, match="dtype"):
            embedder.embed("text", TEXTS, output=output, dtype="float64")


def test_embeddings_of_any_type_find_the_same_neighbors(made: Made, table_data: PairDataset) -> None:
    items = list(dict.fromkeys(table_data.split("train").items["text"].values))[:64]
    with load(made.bundle.folder) as embedder:
        exact = embedder.embed("text", items)
        for dtype in ("float16", "int8"):
            stored = embedder.embed("text", items, dtype=dtype)
            assert np.array_equal(similarity(exact, stored).argmax(axis=1), np.arange(len(items)))
            assert (directions(stored) * exact).sum(axis=1).min() >= 0.999


def test_a_space_is_named_by_head_and_output_alone(made: Made) -> None:
    manifest = made.bundle.manifest
    other = dataclasses.replace(
        manifest,
        precisions={"fp16": manifest.precisions["fp32"]},
        modalities={
            name: dataclasses.replace(entry, graphs={"fp16": entry.graphs["fp32"]})
            for name, entry in manifest.modalities.items()
        },
    )
    assert other.space_id("pooled") == manifest.space_id("pooled")
    assert len({manifest.space_id(output) for output in ("pooled", "concat", "tokens", "complementary")}) == 4
    assert dataclasses.replace(manifest, head_hash="another").space_id("pooled") != manifest.space_id("pooled")
    assert dataclasses.replace(manifest, stage1_hash="another").space_id("pooled") != manifest.space_id("pooled")


def test_attention_says_where_each_register_looked(attentive: Bundle, made: Made) -> None:
    with load(attentive.folder) as embedder:
        found = embedder.attention("text", TEXTS, 3)
        lengths = [len(array) for array in embedder.prepare("text", TEXTS)]
        assert [attention.shape for attention in found] == [(3, length) for length in lengths]
        for attention, text in zip(found, TEXTS, strict=True):
            assert attention.min() >= 0
            np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-5)
            np.testing.assert_allclose(embedder.attention("text", [text])[0][:3], attention, atol=1e-6)
        picture = np.zeros((32, 32), np.uint8)
        assert embedder.attention("image", [picture, picture])[1].shape == (4, 16)
        assert embedder.attention("text", []) == []
        for k in (0, 5):
            with pytest.raises(TokenCountError):
                embedder.attention("text", TEXTS, k)
    with load(made.bundle.folder) as embedder, pytest.raises(UsageError, match="--attention"):
        embedder.attention("text", TEXTS)


def test_sessions_are_asked_for_no_more_than_is_needed(made: Made) -> None:
    asked: list[tuple[str, ...]] = []
    with load(made.bundle.folder) as embedder:
        session = embedder.session("text")

        class Listening:
            def run(self, inputs: dict, k: int, outputs: tuple[str, ...]) -> dict:
                asked.append(tuple(outputs))
                return session.run(inputs, k, outputs)

            def describe(self) -> str:
                return "listening"

            def close(self) -> None:
                pass

        listening = Embedder(made.bundle, {"text": Listening()}, "test")  # type: ignore[dict-item]
        listening.embed("text", TEXTS[:1])
        listening.embed("text", TEXTS[:1], output="tokens")
    assert asked == [("embeddings",), ("tokens",)]
