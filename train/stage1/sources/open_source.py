"""Opening a pretrained encoder by name, whichever library keeps it."""

from __future__ import annotations

from collections.abc import Mapping

from fluxtalk.errors import UsageError
from fluxtalk.train.stage1.sources.names import KINDS, SourceName
from fluxtalk.train.stage1.sources.opened import OpenedEncoder

_OPTIONS = {
    "image": {"layer", "class_tokens", "pooled", "background"},
    "text": {"layer", "pooled", "max_length", "padding"},
    "audio": {"layer", "max_length"},
}
"""Options that change something, by the kind of input."""


def open_source(
    modality: str,
    source: SourceName,
    allow_code: bool = False,
    prompts: Mapping[str, str] | None = None,
    default_prompt: str | None = None,
) -> OpenedEncoder:
    """Open the encoder that a modality names.

    Args:
        modality: says what the encoder takes if it is called image, text or audio; else the source's option ``kind``.
        allow_code: run code that the model brings with it.
        prompts: of a text encoder, name to what is put before a text.
        default_prompt: name of the prompt that is used where none is named.

    Raises:
        UsageError: the library is missing, does not know the name or has no use for an option, or its files do not say
            how to feed it.
        CheckpointError: weights do not fit.
    """
    kind = source.options.get("kind", modality)
    if kind not in KINDS:
        raise UsageError(
            f"The modality {modality} does not say what its encoder takes; add ?kind=image, text or audio to "
            f"{source.text}."
        )
    _require_fitting(source, kind)
    if (prompts or default_prompt) and (kind != "text" or source.library == "open_clip"):
        raise UsageError(f"Prompts are a text encoder's of hf: or st:; {source.text} takes none for {kind}.")
    # Imported here: each of these libraries takes seconds to import.
    if source.library == "timm":
        from fluxtalk.train.stage1.sources.timm_source import open_timm

        return open_timm(source, kind)
    if source.library == "open_clip":
        from fluxtalk.train.stage1.sources.open_clip_source import open_open_clip

        return open_open_clip(source, kind)
    if source.library == "st":
        from fluxtalk.train.stage1.sources.st import open_st

        return open_st(source, kind, allow_code, prompts, default_prompt)
    from fluxtalk.train.stage1.sources.hf import open_hf

    return open_hf(source, kind, allow_code, prompts, default_prompt)


def _require_fitting(source: SourceName, kind: str) -> None:
    """Refuse options that this library has no use for with this kind of input, instead of ignoring them."""
    fitting = {"kind", *_OPTIONS[kind]}
    if source.library == "timm":
        fitting.add("image_size")
    if source.library == "open_clip" and kind == "text":
        fitting = {"kind", "layer"}
    stray = sorted(set(source.options) - fitting)
    if stray:
        names = [", ".join(name.replace("_", "-") for name in sorted(group)) for group in (fitting, stray)]
        raise UsageError(
            f"The options of {source.text} for {kind} are {names[0]}; got {names[1]}, which changes nothing."
        )
