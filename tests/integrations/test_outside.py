"""Haystack, mteb and BERTopic over a bundle: real libraries that `fluxtalk[dev]` leaves out, because they are large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.encoders.torchvision_operators import declare_torchvision_operators
from fluxtalk.datasets import PairDataset
from fluxtalk.runtime import Embedder

pytestmark = [
    pytest.mark.slow,
    # These libraries warn about their own dependencies.
    pytest.mark.filterwarnings("default"),
]
TEXTS = ["black chess queen", "omega", "greek small letter alpha"]


@pytest.fixture(scope="module")
def model(prompted: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundle, opened by sentence-transformers."""
    declare_torchvision_operators()
    from sentence_transformers import SentenceTransformer

    from fluxtalk.integrations.sentence_transformers import save_sentence_transformer

    folder = save_sentence_transformer(prompted, tmp_path_factory.mktemp("saved") / "model")
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def test_haystack_indexes_searches_and_writes_its_pipeline(
    embedder: Embedder, prompted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    pytest.importorskip("haystack", reason="haystack-ai is not in fluxtalk[dev]; pip install 'fluxtalk[haystack]'")
    from haystack import Document, Pipeline
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    from fluxtalk.integrations.haystack import FluxTalkDocumentEmbedder, FluxTalkTextEmbedder

    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    made = FluxTalkDocumentEmbedder(str(prompted)).run([Document(content=text) for text in TEXTS])["documents"]
    np.testing.assert_array_equal([document.embedding for document in made], embedder.encode_document(TEXTS))
    store.write_documents(made)

    search = Pipeline()
    search.add_component("embedder", FluxTalkTextEmbedder(str(prompted)))
    search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
    search.connect("embedder.embedding", "retriever.query_embedding")
    found = search.run({"embedder": {"text": "omega"}})["retriever"]["documents"]
    scores = embedder.similarity(embedder.encode_query("omega"), embedder.encode_document(TEXTS))[0]
    assert [document.content for document in found] == [TEXTS[row] for row in np.argsort(-scores)]

    alone = Pipeline()
    alone.add_component("embedder", FluxTalkTextEmbedder(str(prompted), k=1))
    read = Pipeline.loads(alone.dumps(), allowed_modules=["fluxtalk.integrations.haystack"])
    vector = read.run({"embedder": {"text": "omega"}})["embedder"]["embedding"]
    np.testing.assert_array_equal(vector, embedder.encode_query("omega", k=1))


def test_mteb_runs_a_retrieval_task_on_local_data(
    model: Any, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    mteb = pytest.importorskip("mteb", reason="mteb is not in fluxtalk[dev]; pip install mteb")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    queries = ["chess queen", "greek omega", "small alpha", "latin capital letter b"]
    corpus = [*TEXTS, "latin small letter b"]

    class Local(AbsTaskRetrieval):
        """Four queries and four documents; the document of a query is the one in its place."""

        metadata = TaskMetadata(
            name="LocalNames",
            description="Names of glyphs",
            dataset={"path": "local/names", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, *_args: Any, **_options: Any) -> None:
            """Take the rows above."""
            rows = {"corpus": corpus, "queries": queries}
            split: dict[str, Any] = {
                name: Dataset.from_list([{"id": f"{name[0]}{row}", "text": text} for row, text in enumerate(texts)])
                for name, texts in rows.items()
            }
            split["relevant_docs"] = {f"q{row}": {f"c{row}": 1} for row in range(len(queries))}
            self.dataset = {"default": {"test": {**split, "top_ranked": None}}}
            self.data_loaded = True

    results = mteb.evaluate(model, Local(), cache=None, co2_tracker=False, show_progress_bar=False)
    scores = results.task_results[0].scores["test"][0]
    similarities = embedder.similarity(embedder.encode_query(queries), embedder.encode_document(corpus))
    ranks = (-similarities).argsort(axis=1).argsort(axis=1).diagonal()
    assert scores["ndcg_at_10"] == pytest.approx(float(np.mean(1 / np.log2(ranks + 2))), abs=1e-4)


def test_bertopic_finds_topics_with_it(model: Any, glyph_data: PairDataset) -> None:
    bertopic = pytest.importorskip("bertopic", reason="bertopic is not in fluxtalk[dev]; pip install bertopic")
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    names = [str(name) for name in dict.fromkeys(glyph_data.split("train").items["text"].values)][:60]
    parts = {"umap_model": PCA(3, random_state=0), "hdbscan_model": KMeans(3, n_init=1, random_state=0)}
    topics, _ = bertopic.BERTopic(embedding_model=model, **parts).fit_transform(names)
    given, _ = bertopic.BERTopic(**parts).fit_transform(names, model.encode(names))
    assert list(topics) == list(given)
    assert len(set(topics)) == 3
