"""The modality that a library means when it says text or image, and texts embedded by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxtalk.errors import UsageError
from fluxtalk.preprocess.prompts import DOCUMENT, QUERY
from fluxtalk.runtime import Embedder


def modality_of_kind(kinds: Mapping[str, str], kind: str, named: str | None = None) -> str:
    """Choose the modality of a kind.

    Args:
        kinds: modality to the kind of its items.
        kind: ``text`` or ``image``.
        named: modality that the user named; None takes the only one of that kind.

    Raises:
        UsageError: there is none of that kind, or several and none was named, or the named one is of another kind.
    """
    fitting = [name for name, of in kinds.items() if of == kind]
    if named in fitting:
        return str(named)
    known = ", ".join(f"{name} ({of})" for name, of in kinds.items())
    if named is not None:
        raise UsageError(f"A modality of {kind}s is needed, and this bundle embeds {known}; got {named!r}.")
    if len(fitting) != 1:
        raise UsageError(
            f"{'Name the modality' if fitting else f'No modality embeds {kind}s'}: this bundle has {known}."
        )
    return fitting[0]


@dataclass(frozen=True)
class Texts:
    """Texts of a loaded bundle, embedded as lists of numbers.

    Args:
        embedder: a loaded bundle; closing it stays with its owner.
        modality: modality of the texts; None takes the only one.
        k: register tokens to compute, from the first; None takes all.

    Raises:
        UsageError: no modality takes texts, or it has to be named.
        TokenCountError: ``k`` is not in ``1..num_tokens``.
    """

    embedder: Embedder
    modality: str | None = None
    k: int | None = None

    def __post_init__(self) -> None:
        kinds = {name: self.embedder.input_kind(name) for name in self.embedder.modalities}
        object.__setattr__(self, "modality", modality_of_kind(kinds, "text", self.modality))
        self.embedder.bundle.manifest.layout.select(self.k)

    def queries(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed queries.

        Raises:
            InputError: a text cannot be embedded; its position is named.
        """
        return self._embed(texts, QUERY)

    def documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed what queries are to find.

        Raises:
            InputError: a text cannot be embedded; its position is named.
        """
        return self._embed(texts, DOCUMENT)

    def _embed(self, texts: Sequence[str], role: str) -> list[list[float]]:
        vectors: Any = self.embedder.embed(str(self.modality), texts, k=self.k, role=role).tolist()
        return list(vectors)
