"""A server's bundle as requests are read against it: its name, modalities, tokens and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from fluxtalk.artifacts.bundle import Manifest
from fluxtalk.errors import TokenCountError, UsageError
from fluxtalk.preprocess import Prompting
from fluxtalk.runtime.server.execution.requests import Answer, Item
from fluxtalk.runtime.server.http.errors import ApiError, bad_request
from fluxtalk.tokens import OUTPUT_KINDS, POOLED, Selection, TokenLayout

_TAKEN: dict[str, tuple[tuple[type, ...], str]] = {
    "text": ((str, list, bytes), "a string or a list of token ids"),
    "features": ((str, list, bytes), "a list of vectors, or a .npy file in base64"),
}
"""The Python types of a kind's items, and how an error describes them."""


class AnswerDescription(TypedDict):
    """Description of an answer's vectors, in every dialect."""

    k: int
    output: str
    dimension: int
    revision: str
    space_id: str


@dataclass(frozen=True)
class ServedModel:
    """Name, modalities and limits of the bundle. Never changes while a server runs."""

    names: tuple[str, ...]
    """Names under which clients may ask for it; answers have the first."""
    revision: str
    """Hash of the bundle."""
    created: int
    """Seconds since 1970."""
    precision: str
    kinds: dict[str, str]
    """Modality to what its raw items are: ``text``, ``image``, ``features``, ..."""
    manifest: Manifest
    max_items: int
    """Items of one request."""
    accept_token_ids: bool = False
    """True to take texts as lists of token ids, which have to be those of the bundle's own tokenizer."""

    @property
    def name(self) -> str:
        """Name that answers have."""
        return self.names[0]

    @property
    def layout(self) -> TokenLayout:
        """Register tokens of the bundle, which check every k."""
        return self.manifest.layout

    def require_model(self, name: str | None) -> None:
        """Refuse a request for another model; None is the only one there is.

        Raises:
            ApiError: 404.
        """
        if name is not None and name not in self.names:
            served = " and ".join(map(repr, self.names))
            sentence = (
                f"The model {name[:80]!r} is not served here; {served} {'is' if len(self.names) == 1 else 'are'}."
            )
            raise ApiError(404, sentence, "model_not_found", "model")

    def default_modality(self) -> str:
        """Find the modality of items that do not name theirs: the only one of texts, or the only one at all.

        Raises:
            ApiError: 400: there is no such modality.
        """
        texts = [modality for modality, kind in self.kinds.items() if kind == "text"]
        if len(texts) == 1:
            return texts[0]
        if len(self.kinds) == 1:
            return next(iter(self.kinds))
        raise bad_request(f"Name the modality: one of {', '.join(self.kinds)}.", "modality", "missing")

    def require_modality(self, name: object, param: str = "modality") -> str:
        """Find the modality of that name, or the only one of that kind.

        Raises:
            ApiError: 400: it is unknown.
        """
        if isinstance(name, str):
            if name in self.kinds:
                return name
            of_kind = [modality for modality, kind in self.kinds.items() if kind == name]
            if len(of_kind) == 1:
                return of_kind[0]
        shown = repr(name[:80]) if isinstance(name, str) else type(name).__name__
        what = "modality must be" if param == "modality" else "An item is"
        raise bad_request(f"{what} one of {', '.join(self.kinds)}; got {shown}.", param)

    def modality_names(self) -> list[str]:
        """List every name that `require_modality` takes."""
        kinds = list(self.kinds.values())
        return list(dict.fromkeys([*self.kinds, *(kind for kind in kinds if kinds.count(kind) == 1)]))

    def item(self, name: object, value: Any, param: str) -> Item:
        """Make a raw item of a modality. Its content is checked when it is decoded.

        Args:
            name: see `require_modality`.
            param: its place in the body, for errors.

        Raises:
            ApiError: 400: there is no such modality, or its items are of another type.
        """
        modality = self.require_modality(name, param)
        kind = self.kinds[modality]
        types, described = _TAKEN.get(kind, ((str, bytes), f"a file of kind {kind} in base64"))
        if not isinstance(value, types):
            raise bad_request(f"{param} must be {described}; got {type(value).__name__}.", param, "invalid_type")
        if kind == "text" and isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                raise bad_request(f"{param} must be a text in UTF-8; these bytes are not.", param) from None
        self.require_no_token_ids(modality, value, param)
        return Item(modality, value)

    def require_no_token_ids(self, modality: str, value: Any, param: str) -> None:
        """Refuse a text as token ids, unless the server was told that its clients have the bundle's own tokenizer.

        Nothing about ids shows whose they are: those of another tokenizer would be embedded as another text.

        Raises:
            ApiError: 400.
        """
        if self.accept_token_ids or self.kinds[modality] != "text" or not isinstance(value, list) or not value:
            return
        if all(isinstance(token, int) for token in value):
            raise bad_request(
                f"{param} is a list of token ids, which mean a text to the tokenizer that made them alone; send the "
                "text as a string (LangChain's OpenAIEmbeddings does so with check_embedding_ctx_length=False), or "
                "start the server with --accept-token-ids if its clients have the bundle's own tokenizer.",
                param,
                "token_ids",
            )

    def require_count(self, count: int, param: str = "input") -> None:
        """Refuse no items, and more than a request may have.

        Raises:
            ApiError: 400.
        """
        if not count:
            raise bad_request(f"{param} holds nothing to embed; give at least one item.", param, "empty")
        if count > self.max_items:
            raise bad_request(
                f"{param} holds {count:,} items, and one request takes at most {self.max_items:,}: "
                "send them in several.",
                param,
                "too_many_items",
            )

    def select(
        self,
        k: int | None,
        output: str | None,
        k_name: str = "k",
        dimensions: int | None = None,
        dimensions_name: str = "dimensions",
    ) -> Selection:
        """Check ``k``, ``output`` and ``dimensions`` against the bundle.

        Args:
            k: register tokens; None takes all.
            output: None takes ``pooled``.
            k_name: the field in which the client sent k.
            dimensions: numbers of a vector; None cuts nothing.
            dimensions_name: the field in which the client sent them.

        Raises:
            ApiError: 400, with the field at fault.
        """
        output = POOLED if output is None else output
        try:
            whole = self.layout.select(k, output, k_name=k_name)
        except TokenCountError as error:
            raise bad_request(str(error), k_name) from None
        except UsageError as error:
            raise bad_request(str(error), k_name if k is not None and output in OUTPUT_KINDS else "output") from None
        if dimensions is None:
            return whole
        try:
            return self.layout.select(k, output, dimensions, k_name=k_name, dimensions_name=dimensions_name)
        except UsageError as error:
            raise bad_request(str(error), dimensions_name) from None

    def prompts(self, modality: str) -> dict[str, str]:
        """List a modality's prompts, name to text; most have none."""
        return dict(self.manifest.modalities[modality].preprocess.get("prompts", {}))

    def prompting(
        self, items: Sequence[Item], role: str | None = None, name: str | None = None, param: str = "prompt_name"
    ) -> Prompting:
        """Check the choice of a prompt against the items' modalities.

        Args:
            role: ``query``, ``document`` or None.
            name: name of a prompt.
            param: the field in which the client sent a choice, for errors.

        Raises:
            ApiError: 400: there is no such prompt for texts of the request, or two fields choose.
        """
        try:
            prompting = Prompting(role, name)
            if name is not None:
                modalities = dict.fromkeys(item.modality for item in items)
                texts = [modality for modality in modalities if self.kinds[modality] == "text"]
                for modality in texts or modalities:
                    prompting.prompt_name(self.prompts(modality))
        except UsageError as error:
            raise bad_request(str(error), param) from None
        return prompting

    def describe(self, answer: Answer) -> AnswerDescription:
        """Describe an answer's vectors."""
        selection = answer.selection
        return {
            "k": selection.k,
            "output": selection.output,
            "dimension": int(answer.vectors.shape[-1]),
            "revision": self.revision,
            "space_id": self.manifest.space_id(selection.output, selection.layout.dim),
        }
