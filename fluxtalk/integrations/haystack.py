"""Haystack: a bundle as the embedder of texts and the embedder of documents in its pipelines.

::

    from fluxtalk.integrations.haystack import FluxTalkDocumentEmbedder, FluxTalkTextEmbedder

    indexing.add_component("embedder", FluxTalkDocumentEmbedder("bundle"))
    search.add_component("embedder", FluxTalkTextEmbedder("bundle", k=2))

A component is made of the bundle's path, so that a pipeline can be written to YAML; `warm_up` loads it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fluxtalk.errors import BackendError
from fluxtalk.integrations.modalities import Texts
from fluxtalk.runtime import load

try:
    from haystack import Document, component, default_to_dict
except ImportError:
    raise BackendError("Haystack is not installed; pip install 'fluxtalk[haystack]'.") from None


class _BundleComponent:
    """Settings and the loaded bundle that both components have.

    Args:
        bundle: folder of a bundle.
        modality: modality of the texts; None takes the only one.
        k: register tokens to compute, from the first; None takes all.
        backend: backend, as for `fluxtalk.load`.
    """

    def __init__(self, bundle: str, modality: str | None = None, k: int | None = None, backend: str = "auto") -> None:
        self.bundle, self.modality, self.k, self.backend = str(bundle), modality, k, backend
        self._texts: Texts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Describe the component for a pipeline's file."""
        described: dict[str, Any] = default_to_dict(
            self, bundle=self.bundle, modality=self.modality, k=self.k, backend=self.backend
        )
        return described

    def warm_up(self) -> None:
        """Load the bundle, once.

        Raises:
            FluxTalkError: as for `fluxtalk.load` and `fluxtalk.integrations.modalities.Texts`.
        """
        if self._texts is None:
            self._texts = Texts(load(self.bundle, backend=self.backend), self.modality, self.k)

    def _warm(self) -> Texts:
        self.warm_up()
        assert self._texts is not None
        return self._texts


@component
class FluxTalkTextEmbedder(_BundleComponent):
    """Embedder of queries."""

    @component.output_types(embedding=list[float])  # type: ignore[untyped-decorator]
    def run(self, text: str) -> dict[str, Any]:
        """Embed one query: ``embedding``, of ``embedding_dim`` numbers.

        Raises:
            InputError: the text cannot be embedded.
        """
        return {"embedding": self._warm().queries([text])[0]}


@component
class FluxTalkDocumentEmbedder(_BundleComponent):
    """Embedder of the content of documents, which is all of a document that is read."""

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Copy the documents with their embeddings.

        Raises:
            InputError: a document has no text; its position is named.
        """
        vectors = self._warm().documents([document.content for document in documents])
        return {
            "documents": [
                dataclasses.replace(document, embedding=vector)
                for document, vector in zip(documents, vectors, strict=True)
            ]
        }
