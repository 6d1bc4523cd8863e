"""Fields that every way of writing `/v1/embeddings` has, beside its items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from msgspec import Meta

from fluxtalk.runtime.server.execution.requests import EmbedRequest, Item
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.server.http.json_body import Body
from fluxtalk.tokens import OUTPUT_KINDS, Selection

EmbeddingType = Literal["float", "base64", "float16", "int8", "binary", "ubinary"]
EMBEDDING_TYPES: tuple[str, ...] = get_args(EmbeddingType)
K = Annotated[int, Meta(extra_json_schema={"description": "an integer: how many register tokens, from the first"})]
Tokens = Annotated[int, Meta(extra_json_schema={"description": "an integer: another name of k", "deprecated": True})]
MaxTokens = Annotated[int, Meta(ge=-1, le=1 << 31)]
Output = Annotated[str, Meta(extra_json_schema={"enum": list(OUTPUT_KINDS)})]


class EmbeddingOptions(Body):
    """Output to compute from the items, and the form in which it is written."""

    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    k: K | None = None
    tokens: Tokens | None = None
    output: Output | None = None
    embedding_types: list[EmbeddingType] | None = None
    prompt_name: str | None = None
    input_type: Literal["query", "document"] | None = None
    truncate_prompt_tokens: MaxTokens | None = None

    def request(self, items: Sequence[Item], model: ServedModel) -> EmbedRequest:
        """Check these fields, and make the typed request.

        Raises:
            ApiError: 400 or 404, with the field at fault.
        """
        model.require_model(self.model)
        selection = select(model, self.k, self.tokens, self.output, *self.size())
        role, param = self.role()
        if role is not None and self.prompt_name is not None:
            raise bad_request(f"{param} chooses a prompt, and so does prompt_name; give one of them.", param)
        prompting = model.prompting(items, role, self.prompt_name)
        return EmbedRequest(items, selection, prompting, self._max_tokens(items), self.truncates(), self.num_forms())

    def size(self) -> tuple[int | None, str]:
        """Read the size of a vector, and the field that says it."""
        return self.dimensions, "dimensions"

    def truncates(self) -> bool:
        """True if a text may be read in part."""
        return True

    def num_forms(self) -> int:
        """Count the ways in which vectors are written side by side."""
        return max(1, len(set(self.embedding_types or ())))

    def _max_tokens(self, items: Sequence[Item]) -> int | None:
        """Read vLLM's ``truncate_prompt_tokens``, of which -1 is the encoder's own length.

        Raises:
            ApiError: 400: it is 0, or items are token ids, which are taken as they are.
        """
        asked, name = self.truncate_prompt_tokens, "truncate_prompt_tokens"
        if asked is None or asked == -1:
            return None
        if asked == 0:
            raise bad_request(f"{name} must be at least 1, or -1 for what the encoder takes; got 0.", name)
        if any(isinstance(item.value, list) for item in items):
            raise bad_request(f"{name} shortens texts, and token ids are taken as they are; leave it out.", name)
        return asked

    def role(self) -> tuple[str | None, str]:
        """Read the role of the texts, and the field that says it.

        Raises:
            ApiError: 400: two fields say it.
        """
        return self.input_type, "input_type"

    def form(self) -> AnswerForm:
        """Read the form of the answer."""
        return AnswerForm(self.encoding_format or "float", tuple(dict.fromkeys(self.embedding_types or ())))


@dataclass(frozen=True)
class AnswerForm:
    """Form in which vectors are written."""

    encoding: str = "float"
    """``float`` or ``base64``."""
    types: Sequence[str] = ()
    """Names of `EmbeddingType`, each written under ``embeddings``; none writes ``embedding`` alone."""
    dtype: str | None = None
    """Type of the numbers in ``embedding`` (see `typed_vectors`); None is float32."""


def select(
    model: ServedModel,
    k: int | None,
    tokens: int | None,
    output: str | None,
    dimensions: int | None,
    dimensions_name: str = "dimensions",
) -> Selection:
    """`ServedModel.select` of a body, which may call k ``tokens``, as it was once called.

    Raises:
        ApiError: 400, with the field at fault.
    """
    if tokens is None or k == tokens:
        return model.select(k, output, "k", dimensions, dimensions_name)
    if k is not None:
        raise bad_request(f"tokens is another name of k, so give one of them; got k {k} and tokens {tokens}.", "tokens")
    return model.select(tokens, output, "tokens", dimensions, dimensions_name)
