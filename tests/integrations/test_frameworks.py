"""A bundle in LangChain and in LlamaIndex: queries and documents with their roles, and a search in each."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import numpy as np
import pytest
from langchain_core.vectorstores import InMemoryVectorStore

from fluxtalk.errors import InputError, TokenCountError, UsageError
from fluxtalk.integrations.langchain import FluxTalkEmbeddings
from fluxtalk.integrations.llama_index import FluxTalkEmbedding
from fluxtalk.runtime import Embedder

TEXTS = ["black chess queen", "omega", "greek small letter alpha"]


def test_langchain_embeds_by_role(embedder: Embedder) -> None:
    embeddings = FluxTalkEmbeddings(embedder)
    np.testing.assert_array_equal(embeddings.embed_documents(TEXTS), embedder.encode_document(TEXTS))
    np.testing.assert_array_equal(embeddings.embed_query(TEXTS[0]), embedder.encode_query(TEXTS[0]))
    assert not np.allclose(embeddings.embed_query(TEXTS[0]), embeddings.embed_documents(TEXTS)[0])
    np.testing.assert_array_equal(asyncio.run(embeddings.aembed_documents(TEXTS)), embeddings.embed_documents(TEXTS))
    assert embeddings.embed_documents([]) == []
    with pytest.raises(InputError, match="text item 1: A text must not be empty"):
        embeddings.embed_documents(["omega", " "])


def test_a_vector_store_of_langchain_finds_what_the_vectors_say(embedder: Embedder) -> None:
    store = InMemoryVectorStore.from_texts(TEXTS, FluxTalkEmbeddings(embedder, k=1))
    scores = embedder.similarity(embedder.encode_query("omega", k=1), embedder.encode_document(TEXTS, k=1))[0]
    found = [document.page_content for document in store.similarity_search("omega", 3)]
    assert found == [TEXTS[row] for row in np.argsort(-scores)]


def test_llama_index_embeds_by_role(embedder: Embedder) -> None:
    embedding = FluxTalkEmbedding(embedder, k=2, embed_batch_size=2)
    documents, query = embedder.encode_document(TEXTS, k=2), embedder.encode_query(TEXTS[0], k=2)
    # In batches of two: rows differ by rounding.
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), documents, atol=1e-5)
    np.testing.assert_allclose(embedding.get_text_embedding(TEXTS[1]), documents[1], atol=1e-5)
    np.testing.assert_allclose(embedding.get_query_embedding(TEXTS[0]), query, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(embedding.aget_query_embedding(TEXTS[0])), query, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(embedding.aget_text_embedding_batch(TEXTS)), documents, atol=1e-5)
    assert embedding.model_name == "bundle"
    assert embedding.to_dict()["class_name"] == "FluxTalkEmbedding"


def test_an_index_of_llama_index_finds_what_the_vectors_say(embedder: Embedder) -> None:
    from llama_index.core import Document, VectorStoreIndex

    model = FluxTalkEmbedding(embedder)
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], embed_model=model)
    found = [node.text for node in index.as_retriever(similarity_top_k=3).retrieve("omega")]
    scores = embedder.similarity(embedder.encode_query("omega"), embedder.encode_document(TEXTS))[0]
    assert found == [TEXTS[row] for row in np.argsort(-scores)]


def test_what_no_text_modality_takes_is_refused_at_once(embedder: Embedder) -> None:
    for face in (FluxTalkEmbeddings, FluxTalkEmbedding):
        with pytest.raises(UsageError, match=r"A modality of texts is needed, .* got 'image'"):
            face(embedder, "image")
        with pytest.raises(TokenCountError):
            face(embedder, k=99)


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("langchain", "langchain_core", "LangChain is not installed; pip install 'fluxtalk[langchain]'."),
        ("llama_index", "llama_index", "LlamaIndex is not installed; pip install 'fluxtalk[llama-index]'."),
        ("sentence_transformers", "sentence_transformers", "pip install 'fluxtalk[sentence-transformers]'."),
    ],
)
def test_a_missing_library_is_a_sentence(module: str, library: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{library!r}] = None
import fluxtalk.integrations
from fluxtalk.errors import BackendError
try:
    import fluxtalk.integrations.{module}
except BackendError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith(extra), done.stderr


def test_the_adapters_of_texts_import_no_torch() -> None:
    code = (
        "import sys; import fluxtalk.integrations.langchain, fluxtalk.integrations.llama_index; "
        "print([name for name in sys.modules if name.startswith(('fluxtalk.model', 'fluxtalk.train'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
