"""Stage 1 from a user's specification: encoders, weights and preprocessing in one checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.files import Identity, git_revision
from fluxtalk.artifacts.json_files import read_json, read_object, read_text
from fluxtalk.datasets.data_paths import with_absolute_path
from fluxtalk.errors import UsageError, reason
from fluxtalk.model.checkpoints.stage1 import Stage1, Stage1Modality
from fluxtalk.model.encoders import EncoderSpec, build_encoder
from fluxtalk.model.encoders.libraries import is_library_source
from fluxtalk.preprocess import FeaturesPreprocessor, Preprocessor, TextPreprocessor, from_parts
from fluxtalk.preprocess.text import OPTIONS, TOKENIZER_FILE
from fluxtalk.train.stage1.probe import probe
from fluxtalk.train.stage1.sources.names import SourceName, parse_source
from fluxtalk.train.stage1.sources.open_source import open_source
from fluxtalk.train.stage1.sources.weights import fit_weights, read_weights

_KEYS = {"encoder", "options", "weights", "preprocess", "prompts", "default_prompt"}
_LONGEST_STATED = 1_000_000
"""Bound of maximum lengths that mean something: tokenizers without one say 10^30."""
_MOST_BYTES = 256 << 20
"""Largest tokenizer.json that is read."""
_IMAGE_EXAMPLE = (
    '{"kind": "image", "height": 224, "width": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
)


def stage1_from_specification(path: Path, allow_code: bool = False) -> Stage1:
    """Build every encoder that a JSON specification names, and try each on the extremes of its inputs.

    Paths in the specification, its data set's included, are relative to it; a module beside it can be imported.

    Args:
        allow_code: run code that a model of a hub brings with it.

    Raises:
        UsageError: the specification is malformed, or an encoder fails on its inputs.
        CheckpointError: a weights file cannot be used.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UsageError(f"The specification {path} does not exist; check the path.") from None
    except ValueError as error:
        raise UsageError(f"The specification {path} is not valid JSON ({reason(error)}); correct it.") from None
    modalities = content.get("modalities") if isinstance(content, dict) else None
    if not isinstance(modalities, dict) or not modalities or set(content) - {"data", "modalities"}:
        raise UsageError(f"The specification {path} has the keys modalities (at least one) and, optionally, data.")
    data = content.get("data")
    if data is not None and (not isinstance(data, str) or not data):
        raise UsageError(f"The data of the specification {path} is a string, as --data takes it; got {data!r}.")
    parts: dict[str, Stage1Modality] = {}
    about: dict[str, Any] = {}
    for name, part in modalities.items():
        parts[name], about[name] = _modality(path.parent, name, part, allow_code)
    return Stage1(
        modalities=parts,
        data=None if data is None else with_absolute_path(data, path.parent),
        figures={"specification": content, "encoders": about},
        identity=Identity(git_revision=git_revision()),
    )


def pretrained_modality(
    name: str,
    source: SourceName,
    allow_code: bool = False,
    prompts: Mapping[str, str] | None = None,
    default_prompt: str | None = None,
) -> tuple[Stage1Modality, dict[str, Any]]:
    """Open a pretrained encoder of another library for a modality, and try it on the extremes of its inputs.

    Returns:
        The modality, and a record of the encoder for people.

    Raises:
        UsageError: it cannot be opened, or fails on its inputs.
        CheckpointError: its weights do not fit.
    """
    opened = open_source(name, source, allow_code, prompts, default_prompt)
    dim = probe(name, source.text, opened.encoder, opened.preprocess)
    spec = EncoderSpec(opened.source, dict(opened.options), dim)
    return Stage1Modality(spec, opened.weights, opened.preprocess), dict(opened.about)


def _modality(
    folder: Path, name: str, part: Mapping[str, Any], allow_code: bool
) -> tuple[Stage1Modality, dict[str, Any]]:
    shape = {key: type(value) for key, value in part.items()} if isinstance(part, dict) else {}
    if set(shape) - _KEYS or shape.get("encoder") is not str or shape.get("options", dict) is not dict:
        got = ", ".join(shape) or repr(part)
        raise UsageError(
            f"The modality {name} has the keys encoder (a string) and, optionally, options (an object), weights, "
            f"preprocess, prompts, default_prompt; got {got}."
        )
    source, options = part["encoder"], part.get("options", {})
    if is_library_source(source):
        if "weights" in part or "preprocess" in part:
            raise UsageError(
                f"The modality {name} takes weights and preprocessing from {source}; leave out weights and preprocess."
            )
        opened = parse_source(source, options).within(folder)
        return pretrained_modality(name, opened, allow_code, part.get("prompts"), part.get("default_prompt"))
    code_folder = _code_folder(folder, source)
    encoder = build_encoder(source, options, code_folder)
    preprocess = _preprocess(folder, name, source, part.get("preprocess"))
    if "weights" in part:
        fit_weights(
            encoder, read_weights(folder / part["weights"]), f"The weights {part['weights']} do not fit {source}"
        )
    weights = {key: value.detach().clone() for key, value in encoder.state_dict().items()}
    dim = probe(name, source, encoder, preprocess)
    return Stage1Modality(EncoderSpec(source, options, dim, code_folder), weights, preprocess), {}


def _code_folder(folder: Path, source: str) -> str | None:
    """The specification's folder, if a module that the source names lies in it and cannot be imported otherwise."""
    kind, _, rest = source.partition(":")
    top = rest.partition(":")[0].partition(".")[0]
    if kind != "module" or not top or importlib.util.find_spec(top) is not None:
        return None
    beside = (folder / f"{top}.py").is_file() or (folder / top / "__init__.py").is_file()
    return str(folder.resolve()) if beside else None


def _preprocess(folder: Path, name: str, source: str, config: Mapping[str, Any] | None) -> Preprocessor:
    if source.startswith("features:"):
        if config is not None:
            raise UsageError(f"The modality {name} reads features as they are; it takes no preprocess.")
        return FeaturesPreprocessor(int(source.removeprefix("features:")))
    if config is None:
        raise UsageError(f"The modality {name} needs a preprocess, such as {_IMAGE_EXAMPLE}.")
    if not isinstance(config, Mapping):
        raise UsageError(f"The preprocess of {name} is an object, such as {_IMAGE_EXAMPLE}; got {config!r}.")
    if config.get("kind") == "image":
        return _image(name, source, config)
    if config.get("kind") != "text":
        return from_parts(config, {})
    return _text(folder, name, config)


def _text(folder: Path, name: str, config: Mapping[str, Any]) -> Preprocessor:
    known = {"kind", "tokenizer", "max_length", *OPTIONS}
    if not set(config) <= known or not isinstance(config.get("tokenizer"), str):
        raise UsageError(
            f"The text preprocessing of {name} has the keys kind, tokenizer (a tokenizer.json, or its folder) and "
            f"max_length; it may have {', '.join(OPTIONS)}."
        )
    path = folder / config["tokenizer"]
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if "max_length" not in config:
        raise UsageError(
            f"The text preprocessing of {name} lacks max_length, the token ids that its encoder reads at most; "
            f"{_stated_length(file.parent)}."
        )
    options = {option: config[option] for option in OPTIONS if option in config}
    try:
        return TextPreprocessor(read_text(file, _MOST_BYTES), config["max_length"], **options)
    except FileNotFoundError:
        raise UsageError(f"The tokenizer {file} of {name} does not exist; check the path.") from None
    except ValueError as error:
        raise UsageError(f"The tokenizer {file} of {name} cannot be read ({reason(error)}); correct it.") from None


def _stated_length(folder: Path) -> str:
    """Say what the files beside a tokenizer tell of its model's maximum length."""
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
        ("config.json", "max_position_embeddings"),
    ):
        try:
            value = read_object(folder / name, any_number=True).get(key)
        except (OSError, ValueError):
            continue
        if type(value) is int and value < _LONGEST_STATED:
            return f"{folder / name} says {key} {value}"
    return "its model's own files say it: model_max_length in tokenizer_config.json"


def _image(name: str, source: str, config: Mapping[str, Any]) -> Preprocessor:
    missing = [key for key in ("mean", "std") if key not in config]
    if missing and source.startswith("module:"):
        raise UsageError(
            f"The image preprocessing of {name} lacks {' and '.join(missing)}, which its encoder was trained with: "
            "[0.485, 0.456, 0.406] and [0.229, 0.224, 0.225] for most of ImageNet (ResNet, ConvNeXt, DINOv2), "
            "[0.4815, 0.4578, 0.4082] and [0.2686, 0.2613, 0.2758] for CLIP, 0.5 and 0.5 for SigLIP and many ViTs. "
            "The model's own files say it: image_mean and image_std in preprocessor_config.json, or mean and std in "
            "timm's pretrained_cfg."
        )
    # New checkpoints have a background unless told otherwise; only a preprocessing that was stored before has none.
    return from_parts({"background": "white", **config}, {})
