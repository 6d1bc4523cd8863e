"""`open_clip:ARCH[@FILE_OR_TAG]` and `open_clip:FOLDER`: towers of open_clip's models."""

from __future__ import annotations

from typing import Any

from fluxtalk.errors import CheckpointError, UsageError, reason
from fluxtalk.model.encoders.libraries import import_library
from fluxtalk.model.encoders.open_clip_models import wrap_open_clip
from fluxtalk.train.stage1.preprocessing.open_clip_images import image_preprocessor_of
from fluxtalk.train.stage1.preprocessing.open_clip_text import text_preprocessor_of
from fluxtalk.train.stage1.sources.names import SourceName
from fluxtalk.train.stage1.sources.opened import OpenedEncoder, take_weights


def open_open_clip(source: SourceName, kind: str) -> OpenedEncoder:
    """Open one tower of a model of open_clip, with the preprocessing that open_clip gives it.

    Weights come from the file or hub tag after ``@``, or from a folder as open_clip pushes it to the hub.

    Raises:
        UsageError: open_clip is missing, does not know the name or tag, or has no tower for the kind.
        CheckpointError: a file of weights does not fit.
    """
    open_clip = import_library("open_clip", source.text)
    if kind not in ("image", "text"):
        raise UsageError(f"open_clip has image and text towers; got {source.text} for {kind}.")
    folder = source.folder
    name = source.name if folder is None else f"local-dir:{folder}"
    config = open_clip.get_model_config(name)
    if config is None:
        known = ", ".join(open_clip.list_models()[:5])
        raise UsageError(f"open_clip {open_clip.__version__} knows no model {name}; it knows {known}, ...")
    if folder is None and source.file is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:5])
        raise UsageError(
            f"{source.text} names no weights; say open_clip:{name}@FILE"
            f"{f', or a tag of the hub where there is a network: {tags}' * bool(tags)}."
        )
    try:
        model = open_clip.create_model(name, pretrained=None if source.file is None else str(source.file))
        tokenizer = open_clip.get_tokenizer(name) if kind == "text" else None
    except RuntimeError as error:
        if "state_dict" not in str(error):
            raise UsageError(f"The encoder {source.text} cannot be opened by open_clip ({reason(error)}).") from error
        keys = " ".join(str(error).split())[:300]
        raise CheckpointError(f"The weights of {source.text} do not fit: {keys}.") from None
    except Exception as error:  # the hub's client raises many kinds
        raise UsageError(f"The encoder {source.text} cannot be opened by open_clip ({reason(error)}).") from error
    options: dict[str, Any] = {"kind": kind, "config": config, **source.chosen()}
    encoder = wrap_open_clip(source.text, model, options)
    if kind == "text":
        preprocess: Any = text_preprocessor_of(tokenizer)
    else:
        preprocess = image_preprocessor_of(model.visual.preprocess_cfg, **source.background)
    return OpenedEncoder(
        source=source.stored,
        options=options,
        encoder=encoder,
        weights=take_weights(encoder),
        preprocess=preprocess,
        about={"library": f"open_clip {open_clip.__version__}"},
    )
