"""Vectors cut to the sizes that were trained: in the library, on the command line, in an index and over HTTP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fluxtalk.artifacts.index import read_index_manifest
from fluxtalk.datasets import PairDataset
from fluxtalk.errors import IndexFileError, UsageError
from fluxtalk.runtime import load, maxsim
from fluxtalk.runtime.index.search import SearchIndex
from fluxtalk.tokens import TokenLayout, pool
from tests.conftest import Made
from tests.runtime.server.conftest import running
from tests.runtime.test_serving import one_sentence, run

DIM, SHARED = 48, 3
TEXTS = ["black chess queen", "omega", "latin small letter a with grave"]
SIZES = [12, 24, 36, 48, 72, 96, 144]


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def test_the_sizes_of_a_layout() -> None:
    mean = TokenLayout(4, 3, DIM, nested_dims=(12, 24))
    assert mean.dimensions("pooled") == {12: (4, 12), 24: (4, 24), 48: (4, 48)}
    assert mean.dimensions("tokens", 2) == {12: (2, 12), 24: (2, 24), 48: (2, 48)}
    assert mean.dimensions("complementary") == {48: (4, 48)}
    side_by_side = TokenLayout(4, 3, DIM, summary="concat", nested_dims=(12, 24))
    assert side_by_side.dimensions("pooled", 2) == {24: (2, 12), 48: (2, 24), 96: (2, 48)}
    # Of two ways to 24 and 48 numbers, the one with the fewest tokens.
    assert side_by_side.dimensions("pooled") == {
        12: (1, 12), 24: (1, 24), 36: (3, 12), 48: (1, 48), 72: (3, 24), 96: (2, 48), 144: (3, 48),
    }  # fmt: skip
    assert TokenLayout(4, 3, DIM).dimensions("pooled") == {48: (4, 48)}


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_mean_is_cut_and_has_length_one(k: int) -> None:
    tokens = np.random.default_rng(0).standard_normal((5, 4, DIM)).astype(np.float32)
    embeddings = np.stack([pool(tokens, 3, j) for j in range(1, 5)], axis=1)
    chosen = TokenLayout(4, 3, DIM, nested_dims=(12, 24)).select(k, "pooled", 24)
    assert (chosen.k, chosen.shape, chosen.graph_output) == (k, (24,), "embeddings")
    np.testing.assert_allclose(chosen.cut(embeddings), unit(tokens[:, : min(k, 3), :24].mean(axis=1)), atol=1e-6)


@pytest.mark.parametrize(
    ("k", "output", "dimensions", "sentence"),
    [
        (None, "pooled", 30, "size is one of 12, 24, 36, 48, 72, 96, 144 for this output, the only sizes that were"),
        (
            2,
            "pooled",
            12,
            "size is one of 24, 48, 96 for this output at k = 2, the only sizes that were trained; got 12.",
        ),
        (2, "tokens", 36, "size is one of 12, 24, 48 for this output, the only sizes that were trained; got 36."),
        (None, "complementary", 24, "size is 48 for this output, the only size that was trained; got 24."),
        (None, "pooled", True, "got True."),
        (None, "pooled", "24", "got '24'."),
        (None, "pooled", [24], "got [24]."),
    ],
)
def test_another_size_is_refused(k: int | None, output: str, dimensions: object, sentence: str) -> None:
    layout = TokenLayout(4, 3, DIM, summary="concat", nested_dims=(12, 24))
    with pytest.raises(UsageError) as refused:
        layout.select(k, output, dimensions, dimensions_name="size")
    assert sentence in str(refused.value)


def test_each_token_is_cut(side_by_side: Made) -> None:
    assert side_by_side.bundle.manifest.nested_dims == [12, 24]
    with load(side_by_side.bundle.folder) as embedder:
        tokens = embedder.embed("text", TEXTS, output="tokens")
        for dim in (12, 24, DIM):
            assert (
                np.abs(embedder.embed("text", TEXTS, 2, "tokens", dimensions=dim) - tokens[:, :2, :dim]).max() <= 1e-5
            )
            for k in range(1, SHARED + 1):
                found = embedder.embed("text", TEXTS, k, dimensions=k * dim)
                expected = unit(tokens[:, :k, :dim]).reshape(3, -1) / np.sqrt(k)
                assert np.abs(found - expected).max() <= 2e-6
        # Without k, it is chosen.
        assert np.array_equal(embedder.embed("text", TEXTS, dimensions=96), embedder.embed("text", TEXTS, 2))
        assert embedder.embed("text", [], dimensions=36, dtype="binary").shape == (0, 5)


def test_training_at_a_size_is_what_makes_it_good(side_by_side: Made) -> None:
    head = side_by_side.run.head
    assert head.config.nested_dims == "12,24"
    assert head.config.layout.nested_dims == (12, 24)


def test_files_and_indexes_hold_cut_vectors(
    side_by_side: Made, made: Made, table_data: PairDataset, tmp_path: Path
) -> None:
    texts = list(dict.fromkeys(table_data.split("test").items["text"].values))[:20]
    bundle = side_by_side.bundle.folder
    written = run("embed", bundle, "text", *TEXTS, "--dimensions", 72, "-o", tmp_path / "vectors.npy")
    assert written.exit_code == 0, written.output
    assert np.load(tmp_path / "vectors.npy").shape == (3, 72)
    one_sentence(
        run("embed", bundle, "text", "a", "--dimensions", 30, "-o", tmp_path / "no.npy"), 2, "one of 12, 24, 36"
    )
    sizes = {"pooled": (72, 72), "tokens": (12, 12 * (1 + SHARED))}
    for kind, (dimensions, numbers) in sizes.items():
        for dtype, size in (("float16", 2), ("int8", 1)):
            index = tmp_path / f"{kind}-{dtype}.index"
            cut = ("--kind", kind, "--dimensions", dimensions, "--dtype", dtype)
            built = run("index", "build", bundle, "text", *texts, "-o", index, *cut)
            assert built.exit_code == 0, built.output
            manifest = read_index_manifest(index)
            assert (manifest.bytes_per_item, manifest.token_dim) == (numbers * size, 24 if kind == "pooled" else 12)
            assert manifest.space_id != side_by_side.bundle.manifest.space_id(kind)
            found = run("index", "search", index, "text", texts[7], "-n", 1)
            assert found.stdout.split("  ", 1)[1].strip() == texts[7], found.output
    limited = run("index", "search", index, "text", "a", "--min-recall", 0.9)
    one_sentence(limited, 2, "holds the first 12 numbers of each: give k and item_k in place of limits")
    with load(bundle) as embedder:
        items = embedder.embed("text", texts, SHARED, "tokens", dimensions=12)
        hits = SearchIndex(tmp_path / "tokens-float16.index").search_items(embedder, "text", TEXTS[:1], 5, 2, 20, 1)
        scores = np.sort(maxsim(embedder.embed("text", TEXTS[:1], 2, "tokens", dimensions=12), items[:, :1])[0])[::-1]
        np.testing.assert_allclose([hit.similarity for hit in hits[0]], scores[:5], atol=2e-3)
    with load(made.bundle.folder) as other, pytest.raises(IndexFileError, match="do not share a space"):
        SearchIndex(index).search_items(other, "text", TEXTS)


def test_dimensions_over_http(side_by_side: Made, table_data: PairDataset, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(table_data.split("test").items["text"].values))[:20]
    bundle, index = side_by_side.bundle.folder, tmp_path / "cut.index"
    built = run("index", "build", bundle, "text", *texts, "-o", index, "--dimensions", 72)
    assert built.exit_code == 0, built.output
    with (
        load(bundle) as embedder,
        running(bundle, tmp_path / "log", "--index", index) as server,
        server.client() as client,
    ):
        outputs = client.get("/info").json()["outputs"]
        assert outputs["pooled"]["dimensions"] == SIZES
        assert outputs["tokens"]["dimensions"] == [12, 24, 48]
        spaces = set()
        for dimensions in SIZES:
            answer = client.post("/v1/embeddings", json={"input": TEXTS, "dimensions": dimensions}).json()
            assert answer["dimension"] == dimensions
            spaces.add(answer["space_id"])
            found = np.array([item["embedding"] for item in answer["data"]])
            assert np.abs(found - embedder.embed("text", TEXTS, dimensions=dimensions)).max() <= 1e-6
        # Tokens of 12, 24 and 48 numbers are of three spaces.
        assert len(spaces) == 3
        cohere = client.post("/v2/embed", json={"texts": TEXTS, "k": 2, "output_dimension": 48}).json()
        expected = embedder.embed("text", TEXTS, 2, dimensions=48)
        assert np.abs(np.array(cohere["embeddings"]["float"]) - expected).max() <= 1e-6
        for path, body, field in (
            ("/v1/embeddings", {"input": ["a"], "dimensions": 30}, "dimensions"),
            ("/v1/embeddings", {"input": [{"text": "a"}], "dimensions": 12, "k": 2}, "dimensions"),
            ("/v2/embed", {"texts": ["a"], "output_dimension": 30}, "output_dimension"),
        ):
            refused = client.post(path, json=body)
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert error["param"] == field
            assert error["message"].startswith(f"{field} is one of ")
        schema = client.get("/openapi.json").json()["components"]["schemas"]["OpenAIRequest"]
        assert schema["properties"]["dimensions"]["anyOf"][0]["enum"] == SIZES
        answer = client.post("/v1/search", json={"text": texts[4], "n": 1}).json()
        assert answer["data"][0]["item"] == texts[4]
        assert answer["bytes_per_item"] == 72 * 4
        limited = client.post("/v1/search", json={"text": "a", "min_recall": 0.9})
        assert limited.status_code == 400
        assert limited.json()["error"]["param"] == "min_recall"
