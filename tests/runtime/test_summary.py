"""The one vector of an item where tokens were trained side by side: `pooled` through every door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fluxtalk.artifacts.bundle import Manifest, read_bundle
from fluxtalk.artifacts.index import read_index_manifest
from fluxtalk.datasets import PairDataset
from fluxtalk.runtime import load
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.verify import verify_bundle
from fluxtalk.scoring.metrics import first_hit_ranks, recall_at
from tests.conftest import Made
from tests.runtime.server.conftest import running
from tests.runtime.test_serving import run

DIM, SHARED, TOKENS = 48, 3, 4
TEXTS = ["black chess queen", "omega", "latin small letter a with grave"]


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


@pytest.mark.parametrize("modality", ["image", "text"])
def test_pooled_is_the_first_overlapping_tokens_side_by_side(
    side_by_side: Made, table_data: PairDataset, modality: str
) -> None:
    items = list(table_data.split("test").items[modality].values)[:9]
    preprocess = side_by_side.run.stage1.modalities[modality].preprocess
    tokens, rows = side_by_side.run.embedder(modality).embed(preprocess, items)
    np.testing.assert_allclose(rows, unit(tokens), atol=1e-6)
    with load(side_by_side.bundle.folder) as embedder:
        whole = embedder.embed(modality, items)
        for k in range(1, TOKENS + 1):
            count = min(k, SHARED)
            pooled = embedder.embed(modality, items, k)
            assert pooled.shape == (9, count * DIM)
            assert np.abs(pooled - unit(tokens[:, :count]).reshape(9, -1) / np.sqrt(count)).max() <= 2e-6
            # A shorter one is the beginning of a longer one, but for its length.
            assert np.abs(pooled - unit(whole[:, : count * DIM])).max() <= 2e-6
            assert np.array_equal(pooled, embedder.embed(modality, items, k, "concat"))
            # The graph's rows are its parts.
            found = embedder.session(modality).run(preprocess.collate([preprocess.prepare(i) for i in items]), k)
            assert np.abs(found["embeddings"][:, :count].reshape(9, -1) / np.sqrt(count) - pooled).max() <= 2e-6


def test_the_manifest_says_which_summary_a_bundle_gives(side_by_side: Made, made: Made) -> None:
    manifest = side_by_side.bundle.manifest
    assert (manifest.summary, made.bundle.manifest.summary) == ("concat", "mean")
    assert manifest.bytes_per_item["pooled"] == manifest.bytes_per_item["concat"] == {
        str(k): 4 * DIM * min(k, SHARED) for k in range(1, TOKENS + 1)
    }  # fmt: skip
    assert manifest.space_id("pooled") == manifest.space_id("concat")
    assert made.bundle.manifest.space_id("pooled") != made.bundle.manifest.space_id("concat")
    curve = manifest.precisions["fp32"].serving_curve
    assert curve is not None
    assert all(set(by_output) == {"concat", "tokens"} for by_output in curve.recall.recall.values())


def test_a_bundle_from_before_gives_the_mean(side_by_side: Made) -> None:
    content = {name: value for name, value in side_by_side.bundle.manifest.to_dict().items() if name != "summary"}
    manifest = Manifest.from_json(content)
    assert manifest.layout.select(None, "pooled").shape == (DIM,)
    assert manifest.space_id("pooled") != manifest.space_id("concat")


def test_training_scores_what_is_served(side_by_side: Made, table_data: PairDataset) -> None:
    results = side_by_side.run.results
    assert results is not None
    test = table_data.split("test")
    ids = {m: items.groups[items.counted] for m, items in test.items.items()}
    with load(side_by_side.bundle.folder) as embedder:
        for k in range(1, TOKENS + 1):
            vectors = {
                m: embedder.embed(m, [items.values[row] for row in np.flatnonzero(items.counted).tolist()], k)
                for m, items in test.items.items()
            }
            ranks = first_hit_ranks(vectors["text"], vectors["image"], ids["text"], ids["image"])
            # Training reads features in half precision, which may move a single query of few.
            assert recall_at(ranks) == pytest.approx(results["recall"]["text->image"][str(k)], abs=1.5 / len(ranks))


def test_every_precision_of_it_verifies(side_by_side: Made) -> None:
    verify_bundle(side_by_side.bundle.folder, BackendOptions("ort-cpu", threads=1)).require()


def test_an_index_holds_it_by_default(side_by_side: Made, table_data: PairDataset, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(table_data.split("test").items["text"].values))[:20]
    bundle, index = side_by_side.bundle.folder, tmp_path / "texts.index"
    built = run("index", "build", bundle, "text", *texts, "-o", index)
    assert built.exit_code == 0, built.output
    assert "concat, k = 4, dimension 144" in built.stdout
    assert read_index_manifest(index).output == "concat"
    # A query of fewer tokens reads the first of each item.
    for options in ([], ["-k", 1, "--item-k", 1]):
        found = run("index", "search", index, "text", texts[7], "-n", 1, *options)
        assert found.stdout.split("  ", 1)[1].strip() == texts[7], found.output


def test_a_server_gives_it_at_every_k(side_by_side: Made, table_data: PairDataset, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(table_data.split("test").items["text"].values))[:20]
    bundle = side_by_side.bundle.folder
    for kind in ("pooled", "tokens"):
        built = run("index", "build", bundle, "text", *texts, "-o", tmp_path / f"{kind}.index", "--kind", kind)
        assert built.exit_code == 0, built.output
    indexes = [f"--index={tmp_path / kind}.index" for kind in ("pooled", "tokens")]
    with load(bundle) as embedder, running(bundle, tmp_path / "log", *indexes) as server, server.client() as client:
        info = client.get("/info").json()
        assert info["summary"] == "concat"
        for k in range(1, TOKENS + 1):
            answer = client.post("/v1/embeddings", json={"input": TEXTS, "k": k}).json()
            assert (answer["output"], answer["dimension"]) == ("concat", min(k, SHARED) * DIM)
            assert answer["space_id"] == info["outputs"]["pooled"]["space_id"]
            vectors = np.array([item["embedding"] for item in answer["data"]])
            assert np.abs(vectors - embedder.embed("text", TEXTS, k)).max() <= 1e-6
        body = {
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [3], "data": TEXTS}],
            "parameters": {"k": 2},
        }
        outputs = {o["name"]: o for o in client.post("/v2/models/text/infer", json=body).json()["outputs"]}
        rows = np.array(outputs["embeddings"]["data"]).reshape(3, 2 * DIM) / np.sqrt(2)
        assert np.abs(rows - embedder.embed("text", TEXTS, 2)).max() <= 2e-6
        for index, how in (("pooled", "pooled"), ("tokens", "pooled"), ("tokens", "rerank")):
            asked = {"text": texts[5], "index": index, "how": how, "n": 1}
            answer = client.post("/v1/search", json=asked).json()
            assert answer["data"][0]["item"] == texts[5], answer
            assert answer["data"][0]["score"] == pytest.approx(1, abs=1e-5)
        refused = client.post("/v1/search", json={"text": "a", "index": "tokens", "how": "pooled", "k": 2})
        assert refused.status_code == 400
        assert "one number, from 1 to 1" in refused.json()["error"]["message"]


def test_bundle_is_read_back(side_by_side: Made) -> None:
    assert read_bundle(side_by_side.bundle.folder).manifest == side_by_side.bundle.manifest
