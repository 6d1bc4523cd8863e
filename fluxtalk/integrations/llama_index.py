"""LlamaIndex: a bundle as its `BaseEmbedding`, for every index of it.

::

    import fluxtalk
    from fluxtalk.integrations.llama_index import FluxTalkEmbedding

    index = VectorStoreIndex.from_documents(documents, embed_model=FluxTalkEmbedding(fluxtalk.load("bundle")))
"""

from __future__ import annotations

import asyncio
from typing import Any

from fluxtalk.errors import BackendError
from fluxtalk.integrations.modalities import Texts
from fluxtalk.runtime import Embedder

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
except ImportError:
    raise BackendError("LlamaIndex is not installed; pip install 'fluxtalk[llama-index]'.") from None


class FluxTalkEmbedding(BaseEmbedding):
    """A loaded bundle, as LlamaIndex calls it.

    Args:
        embedder: a loaded bundle; closing it stays with its owner.
        modality: modality of the texts; None takes the only one.
        k: register tokens to compute, from the first; None takes all.
        options: LlamaIndex's own, such as ``embed_batch_size``.

    Raises:
        FluxTalkError: as for `fluxtalk.integrations.modalities.Texts`.
    """

    _texts: Texts = PrivateAttr()

    def __init__(self, embedder: Embedder, modality: str | None = None, k: int | None = None, **options: Any) -> None:
        super().__init__(**{"model_name": embedder.bundle.folder.name, **options})
        self._texts = Texts(embedder, modality, k)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in LlamaIndex's records."""
        return "FluxTalkEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._texts.queries([query])[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._texts.documents([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._texts.documents(texts)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
