"""Text Embeddings Inference's `/embed`, which its clients also call at `/`.

::

    {"inputs": "a text" | ["a text", ...], "normalize": true, "truncate": true, "truncation_direction": "Right",
     "prompt_name": ..., "dimensions": D}

and FluxTalk's ``k`` and ``output`` (``pooled`` or ``concat``). The answer is a list of vectors. Vectors of a bundle
have unit length, whatever ``normalize`` says. ``truncate`` false refuses a text of which not all would be read; the
side of the truncation is that of the bundle.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from fluxtalk.runtime.server.api.answers import Vector
from fluxtalk.runtime.server.api.options import K, select
from fluxtalk.runtime.server.execution.requests import Answer, EmbedRequest
from fluxtalk.runtime.server.execution.served_model import ServedModel
from fluxtalk.runtime.server.http.errors import bad_request
from fluxtalk.runtime.server.http.json_body import Body

_INPUTS = Meta(extra_json_schema={"description": "a string or a list of strings"})


class TeiRequest(Body):
    """Body in the dialect of Text Embeddings Inference."""

    inputs: Annotated[str | list[str], _INPUTS]
    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    encoding_format: Literal["float"] | None = None
    k: K | None = None
    output: Literal["pooled", "concat"] | None = None


TeiAnswer = list[Vector]


def read(body: TeiRequest, model: ServedModel) -> EmbedRequest:
    """Make a body the typed request.

    Raises:
        ApiError: 400, with the field at fault.
    """
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    model.require_count(len(texts), "inputs")
    modality = model.default_modality()
    items = [model.item(modality, text, f"inputs[{at}]") for at, text in enumerate(texts)]
    _require_side(body.truncation_direction, modality, model)
    selection = select(model, body.k, None, body.output, body.dimensions)
    prompting = model.prompting(items, None, body.prompt_name)
    return EmbedRequest(items, selection, prompting, truncate=body.truncate is not False)


def write_answer(answer: Answer) -> Any:
    """Write an answer: a list of vectors, in the order of the texts."""
    return list(answer.vectors)


def _require_side(asked: str | None, modality: str, model: ServedModel) -> None:
    """Refuse to truncate on another side than the encoder was used with.

    Raises:
        ApiError: 400.
    """
    side = model.manifest.modalities[modality].preprocess.get("truncation_side", "right")
    if asked is not None and asked.lower() != side:
        name = "truncation_direction"
        raise bad_request(f"{name} must be {side} here, the side on which this bundle truncates.", name)
