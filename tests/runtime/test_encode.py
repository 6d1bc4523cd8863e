"""`encode` and `similarity`: the face that libraries expect of an embedding model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxtalk.errors import UsageError
from fluxtalk.runtime import Embedder, load
from fluxtalk.runtime.item_kinds import guess_modality
from fluxtalk.tokens import maxsim
from tests.conftest import Made

TEXTS = ["black chess queen", "omega"]


@pytest.fixture(scope="module")
def embedder(made: Made) -> Iterator[Embedder]:
    with load(made.bundle.folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    paths = [folder / f"{row}.png" for row in range(2)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (40, 40), dtype=np.uint8)).save(path)
    return paths


def test_the_modality_is_that_of_the_items(embedder: Embedder, pictures: list[Path]) -> None:
    np.testing.assert_array_equal(embedder.encode(TEXTS), embedder.embed("text", TEXTS))
    images = embedder.embed("image", pictures)
    np.testing.assert_array_equal(embedder.encode(pictures), images)
    opened = [Image.open(path) for path in pictures]
    np.testing.assert_array_equal(embedder.encode(opened), images)
    np.testing.assert_array_equal(embedder.encode(np.stack([np.asarray(image) for image in opened])), images)
    np.testing.assert_array_equal(
        embedder.encode([str(p) for p in pictures], "image", k=1), embedder.embed("image", pictures, 1)
    )


def test_one_item_gives_one_vector(embedder: Embedder, pictures: list[Path]) -> None:
    assert embedder.encode(TEXTS[0]).shape == (embedder.embedding_dim,)
    np.testing.assert_array_equal(embedder.encode(TEXTS[0]), embedder.embed("text", TEXTS[:1])[0])
    np.testing.assert_array_equal(embedder.encode(pictures[0]), embedder.embed("image", pictures[:1])[0])
    np.testing.assert_array_equal(embedder.encode_query(TEXTS[1]), embedder.embed("text", TEXTS[1:])[0])
    assert embedder.encode([]).shape == (0, embedder.embedding_dim)


def test_an_item_that_may_be_of_several_kinds_has_to_be_named(embedder: Embedder) -> None:
    with pytest.raises(
        UsageError, match=r"Name the modality, one of image \(image\), text \(text\): the item, a bytes"
    ):
        embedder.encode(b"\x89PNG")
    with pytest.raises(UsageError, match="the item, a PosixPath, may be of several kinds"):
        embedder.encode(Path("notes.docx"))
    with pytest.raises(UsageError, match="the item, a str, is a text"):
        guess_modality("omega", {"title": "text", "body": "text"})
    assert guess_modality((np.zeros(8), 16_000), {"voice": "audio", "body": "text"}) == "voice"


def test_similarity_is_the_cosine_or_late_interaction(embedder: Embedder) -> None:
    vectors, tokens = embedder.encode(TEXTS), embedder.encode(TEXTS, output="tokens")
    scores = embedder.similarity(vectors, vectors)
    np.testing.assert_allclose(scores, vectors @ vectors.T, atol=1e-6)
    np.testing.assert_allclose(embedder.similarity(vectors[0], vectors), scores[:1], atol=1e-6)
    shared = tokens[:, : embedder.num_overlapping]
    np.testing.assert_array_equal(embedder.similarity(shared, shared[:1]), maxsim(shared, shared[:1]))
    with pytest.raises(UsageError, match="got shapes"):
        embedder.similarity(vectors, tokens)
    with pytest.raises(UsageError, match="got shapes"):
        embedder.similarity(vectors, vectors[:, 1:])
