"""`hf:NAME` and `hf:FOLDER`: encoders of the transformers library, towers of two-tower models included."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fluxtalk.errors import CheckpointError, UsageError, reason
from fluxtalk.model.encoders.hf_models import count_class_tokens, wrap_hf
from fluxtalk.model.encoders.libraries import import_library
from fluxtalk.preprocess import Preprocessor
from fluxtalk.train.stage1.preprocessing.hf_audio import audio_preprocessor_of
from fluxtalk.train.stage1.preprocessing.hf_images import image_preprocessor_of
from fluxtalk.train.stage1.preprocessing.hf_text import text_preprocessor_of
from fluxtalk.train.stage1.sources.names import SourceName
from fluxtalk.train.stage1.sources.opened import OpenedEncoder, take_weights

_TOWERS = {"image": "vision_model", "text": "text_model", "audio": "audio_model"}
_INPUTS = {"image": ("pixel_values",), "text": ("input_ids",), "audio": ("input_values", "input_features")}
_SHOWN = 3
_FEWEST_WORDS = 3
"""Tokens besides special ones that a tokenizer has at least; an empty one of sentencepiece has its space."""


def open_hf(
    source: SourceName,
    kind: str,
    allow_code: bool = False,
    prompts: Mapping[str, str] | None = None,
    default_prompt: str | None = None,
    lowercase: bool = False,
) -> OpenedEncoder:
    """Open an encoder of transformers, with the preprocessing that its own files say.

    Args:
        kind: ``image``, ``text`` or ``audio``: of a model with several towers, the one that takes it.
        allow_code: run the model's own code, where it brings some.
        prompts: of a text encoder, name to what is put before a text.
        default_prompt: name of the prompt that is used where none is named.
        lowercase: lower-case texts before the tokenizer.

    Raises:
        UsageError: transformers is missing, the model cannot be had or is of another kind, its files do not say how to
            feed it, or it brings code of its own that is not allowed.
        CheckpointError: its weights do not fit.
    """
    transformers = import_library("transformers", source.text)
    folder = source.folder
    name = source.name if folder is None else str(folder)
    with _quiet(transformers):
        model, remote = _load(transformers, source, name, kind, allow_code)
    options: dict[str, Any] = {"kind": kind, **source.chosen()}
    if remote:
        options["remote_code"] = name
    else:
        options["model"] = f"{type(model).__module__}:{type(model).__name__}"
    model.config.use_cache = False
    with _quiet(transformers):
        processor = _processor(transformers, source, name, kind, allow_code)
        preprocess = _preprocess(source, kind, model, processor, prompts or {}, default_prompt, lowercase)
    if kind == "text":
        options["padding_is_read"] = _reads_padding(model, source)
    # After the preprocessing, which may have fitted position embeddings to its size.
    options["config"] = _plain(model.config.to_dict())
    encoder = wrap_hf(model, options, preprocess)
    return OpenedEncoder(
        source=source.stored,
        options=options,
        encoder=encoder,
        weights=take_weights(encoder),
        preprocess=preprocess,
        about={"library": f"transformers {transformers.__version__}", "model_type": model.config.model_type},
    )


def _load(transformers: Any, source: SourceName, name: str, kind: str, allow_code: bool) -> tuple[Any, bool]:
    """Load the part of a model that takes a kind of input, and tell whether its code came with it."""
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=allow_code)
        loader = _loader(transformers, config, kind)
        model, info = loader.from_pretrained(
            name,
            config=config,
            output_loading_info=True,
            dtype="auto",
            **({"trust_remote_code": allow_code} if loader is transformers.AutoModel else {}),
        )
    except Exception as error:  # the library and the hub's client raise many kinds
        _refuse_code(source, error)
        if isinstance(error, RuntimeError) and "size mismatch" in str(error).lower():
            raise CheckpointError(
                f"The weights of {source.text} do not fit its configuration: {reason(error)}"
            ) from None
        raise UsageError(
            f"The encoder {source.text} cannot be opened by transformers ({reason(error)}); name a folder as "
            "save_pretrained wrote it, or a model of the hub where there is a network."
        ) from error
    tower, prefix = _tower(model, kind)
    wanted = _INPUTS[kind]
    if getattr(tower, "main_input_name", wanted[0]) not in wanted:
        raise UsageError(
            f"The encoder {source.text} takes {tower.main_input_name}, so it is not for {kind}; "
            f"name another, or the modality's kind with ?kind=."
        )
    _require_all(source, tower, prefix, info)
    return tower, type(model).__module__.startswith("transformers_modules")


def _loader(transformers: Any, config: Any, kind: str) -> Any:
    """Choose the class that loads a model without the heads of its tasks, and without a decoder."""
    if kind == "text" and type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
        return transformers.MODEL_FOR_TEXT_ENCODING_MAPPING[type(config)]
    named = (getattr(config, "architectures", None) or [""])[0]
    if type(config) not in transformers.MODEL_MAPPING and hasattr(transformers, named):
        # A tower that was saved alone, such as SiglipTextModel, of which the automatic classes do not know.
        return getattr(transformers, named)
    return transformers.AutoModel


def _tower(model: Any, kind: str) -> tuple[Any, str]:
    """Take the part of a model that takes a kind of input, and the prefix of its weights' names."""
    attribute = _TOWERS[kind]
    if isinstance(getattr(model, attribute, None), nn.Module):
        return getattr(model, attribute), f"{attribute}."
    whole = getattr(model.config, "is_encoder_decoder", False) and "EncoderModel" not in type(model).__name__
    if whole and isinstance(getattr(model, "encoder", None), nn.Module):
        return model.encoder, "encoder."
    return model, ""


def _require_all(source: SourceName, tower: nn.Module, prefix: str, info: Mapping[str, Any]) -> None:
    missing = [key for key in info.get("missing_keys", ()) if key.startswith(prefix)]
    # Heads of other tasks are in excess in most checkpoints; more of a part that the encoder has is another model's.
    parts = {key.split(".")[0] for key in tower.state_dict()}
    excess = [key for key in info.get("unexpected_keys", ()) if key.startswith(prefix) and _part(key, prefix) in parts]
    missing = [key for key in missing if "pooler" not in key]
    problems = [
        f"{label} {', '.join(sorted(keys)[:_SHOWN])}{f' and {len(keys) - _SHOWN} more' * (len(keys) > _SHOWN)}"
        for label, keys in (("missing", missing), ("in excess", excess))
        if keys
    ]
    if problems:
        raise CheckpointError(f"The weights of {source.text} do not fit its configuration: {'; '.join(problems)}.")


def _part(key: str, prefix: str) -> str:
    return key.removeprefix(prefix).split(".")[0]


def _refuse_code(source: SourceName, error: Exception) -> None:
    """Say what the library's refusal of a model's own code means; its other errors are left to the caller."""
    if "trust_remote_code" in str(error):
        raise UsageError(
            f"The encoder {source.text} brings code of its own, which is not run unasked; add --allow-code if you "
            "trust whoever made it."
        ) from None


def _processor(transformers: Any, source: SourceName, name: str, kind: str, allow_code: bool) -> Any:
    """Load what feeds a model: its tokenizer, image processor or feature extractor."""
    try:
        # Said each time: left out, the library asks on the terminal, and may run code that nobody allowed here.
        if kind == "text":
            return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=allow_code)
        if kind == "image":
            return transformers.AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=allow_code)
        return transformers.AutoFeatureExtractor.from_pretrained(name, trust_remote_code=allow_code)
    except Exception as error:
        _refuse_code(source, error)
        files = {"text": "tokenizer", "image": "image processor", "audio": "feature extractor"}[kind]
        raise UsageError(
            f"The {files} of {source.text} cannot be read ({reason(error)}); save it into the same folder with "
            "save_pretrained."
        ) from error


def _preprocess(
    source: SourceName,
    kind: str,
    model: Any,
    processor: Any,
    prompts: Mapping[str, str],
    default_prompt: str | None,
    lowercase: bool,
) -> Preprocessor:
    if kind == "text":
        # Without its files, transformers makes one that knows its special tokens and reads every text as the same.
        if len(set(processor.get_vocab()) - set(processor.all_special_tokens)) < _FEWEST_WORDS:
            raise UsageError(
                f"The tokenizer of {source.text} knows no words: its files are missing; save it into the same folder "
                "with save_pretrained."
            )
        return text_preprocessor_of(
            processor,
            max_length=source.options.get("max_length"),
            fixed_length=_reads_padding(model, source),
            prompts=prompts,
            default_prompt_name=default_prompt,
            lowercase=lowercase,
        )
    if kind == "audio":
        return audio_preprocessor_of(processor.to_dict(), source.options.get("max_length"))
    preprocess = image_preprocessor_of(processor.to_dict(), **source.background)
    fit_positions(model, preprocess.height, preprocess.width)
    return preprocess


def fit_positions(model: Any, height: int, width: int) -> None:
    """Resize a vision transformer's position embeddings to its pictures once, as it would for each of them.

    DINOv2 is kept for pictures of 518 pixels and fed with 224; its own code then resizes in every call.
    """
    embeddings: Any = getattr(model, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    resize = getattr(embeddings, "interpolate_pos_encoding", None)
    patch = getattr(model.config, "patch_size", None)
    if not isinstance(positions, nn.Parameter) or resize is None or not isinstance(patch, int) or height != width:
        return
    patches = (height // patch) * (width // patch)
    registers = getattr(embeddings, "register_tokens", None)
    first = count_class_tokens(model) - (0 if registers is None else registers.shape[1])
    if positions.shape[1] == patches + first:
        return
    with torch.no_grad():
        sample = torch.zeros(1, patches + first, positions.shape[2], dtype=positions.dtype)
        embeddings.position_embeddings = nn.Parameter(resize(sample, height, width).clone())
    model.config.image_size = height


def _reads_padding(model: Any, source: SourceName) -> bool:
    """Return whether a text model reads its padding: SigLIP's do, which are called without a mask."""
    padding = source.options.get("padding")
    if padding not in (None, "fixed", "longest"):
        raise UsageError(f"The padding of {source.text} is fixed or longest; got {padding!r}.")
    return padding == "fixed" if padding is not None else "siglip" in str(model.config.model_type)


def _plain(value: Any) -> Any:
    """Turn a configuration into plain types, without where it came from."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items() if key not in ("_name_or_path", "name_or_path")}
    if isinstance(value, list | tuple | set):
        return [_plain(part) for part in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the library's reports of what it loads to itself: what matters of them is checked here."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
