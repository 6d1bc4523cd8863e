"""Stage 1 from a user's specification: encoders, weights and preprocessing in one checkpoint."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxtalk.artifacts.files import Identity, git_revision
from fluxtalk.datasets.data_paths import with_absolute_path
from fluxtalk.errors import CheckpointError, UsageError, reason
from fluxtalk.model.checkpoints.stage1 import Stage1, Stage1Modality
from fluxtalk.model.encoders import EncoderSpec, build_encoder
from fluxtalk.preprocess import FeaturesPreprocessor, Preprocessor, TextPreprocessor, from_parts
from fluxtalk.train.stage1.probe import probe

_KEYS = {"encoder", "options", "weights", "preprocess"}
_IMAGE_EXAMPLE = (
    '{"kind": "image", "height": 224, "width": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
)


def stage1_from_specification(path: Path) -> Stage1:
    """Build every encoder that a JSON specification names, and try each on the extremes of its inputs.

    Paths in the specification, its data set's included, are relative to it.

    Raises:
        UsageError: the specification is malformed, or an encoder fails on its inputs.
        CheckpointError: a weights file cannot be used.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"The specification {path} does not exist; check the path.") from None
    except ValueError as error:
        raise UsageError(f"The specification {path} is not valid JSON: {error}.") from None
    modalities = content.get("modalities") if isinstance(content, dict) else None
    if not isinstance(modalities, dict) or not modalities or set(content) - {"data", "modalities"}:
        raise UsageError(f"The specification {path} has the keys modalities (at least one) and, optionally, data.")
    data = content.get("data")
    if data is not None and (not isinstance(data, str) or not data):
        raise UsageError(f"The data of the specification {path} is a string, as --data takes it; got {data!r}.")
    return Stage1(
        modalities={name: _modality(path.parent, name, part) for name, part in modalities.items()},
        data=None if data is None else with_absolute_path(data, path.parent),
        figures={"specification": content},
        identity=Identity(git_revision=git_revision()),
    )


def _modality(folder: Path, name: str, part: Mapping[str, Any]) -> Stage1Modality:
    shape = {key: type(value) for key, value in part.items()} if isinstance(part, dict) else {}
    if set(shape) - _KEYS or shape.get("encoder") is not str or shape.get("options", dict) is not dict:
        got = ", ".join(shape) or repr(part)
        raise UsageError(
            f"The modality {name} has the keys encoder (a string) and, optionally, options (an object), weights, "
            f"preprocess; got {got}."
        )
    source, options = part["encoder"], part.get("options", {})
    encoder = build_encoder(source, options)
    preprocess = _preprocess(folder, name, source, part.get("preprocess"))
    if "weights" in part:
        try:
            encoder.load_state_dict(_read_weights(folder / part["weights"]))
        except RuntimeError as error:
            raise CheckpointError(
                f"The weights {part['weights']} do not fit {source}: {' '.join(str(error).split())[:200]}."
            ) from None
    weights = {key: value.detach().clone() for key, value in encoder.state_dict().items()}
    dim = probe(name, source, encoder, preprocess)
    return Stage1Modality(EncoderSpec(source, options, dim), weights, preprocess)


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
    if set(config) != {"kind", "tokenizer", "max_length"}:
        raise UsageError(
            f"The text preprocessing of {name} has the keys kind, tokenizer (a tokenizer.json) and max_length."
        )
    try:
        return TextPreprocessor((folder / config["tokenizer"]).read_text(), config["max_length"])
    except FileNotFoundError:
        raise UsageError(
            f"The tokenizer {folder / config['tokenizer']} of {name} does not exist; check the path."
        ) from None


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


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"The weights {path} do not exist; check the path.") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"The weights {path} hold more than tensors and plain types, or are not a PyTorch file; "
            "save a state_dict of tensors."
        ) from None
    except Exception as error:  # pickle, zip and safetensors each raise their own
        raise CheckpointError(
            f"The weights {path} cannot be read ({reason(error)}); give a .safetensors or a state_dict of tensors."
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"The weights {path} must be a state_dict: names to tensors.")
    return weights
