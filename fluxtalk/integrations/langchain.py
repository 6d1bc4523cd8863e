"""LangChain: a bundle as its `Embeddings`, for every vector store and retriever of it.

::

    import fluxtalk
    from fluxtalk.integrations.langchain import FluxTalkEmbeddings

    embeddings = FluxTalkEmbeddings(fluxtalk.load("bundle"), k=2)
"""

from __future__ import annotations

from fluxtalk.errors import BackendError
from fluxtalk.integrations.modalities import Texts
from fluxtalk.runtime import Embedder

try:
    from langchain_core.embeddings import Embeddings
except ImportError:
    raise BackendError("LangChain is not installed; pip install 'fluxtalk[langchain]'.") from None


class FluxTalkEmbeddings(Embeddings):
    """A loaded bundle, as LangChain calls it. The asynchronous methods are LangChain's, in its threads.

    Args:
        embedder: a loaded bundle; closing it stays with its owner.
        modality: modality of the texts; None takes the only one.
        k: register tokens to compute, from the first; None takes all.

    Raises:
        FluxTalkError: as for `fluxtalk.integrations.modalities.Texts`.
    """

    def __init__(self, embedder: Embedder, modality: str | None = None, k: int | None = None) -> None:
        self._texts = Texts(embedder, modality, k)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed what queries are to find: a list of ``embedding_dim`` numbers for each text.

        Raises:
            InputError: a text cannot be embedded; its position is named.
        """
        return self._texts.documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """Embed one query: ``embedding_dim`` numbers.

        Raises:
            InputError: the text cannot be embedded.
        """
        return self._texts.queries([text])[0]
