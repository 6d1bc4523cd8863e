"""`timm:NAME[@FILE]` and `timm:FOLDER`: image encoders of the timm library."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from fluxtalk.artifacts.json_files import read_object
from fluxtalk.errors import UsageError, reason
from fluxtalk.model.encoders.libraries import import_library
from fluxtalk.model.encoders.timm_models import build_timm, wrap_timm
from fluxtalk.train.stage1.preprocessing.timm_images import image_preprocessor_of
from fluxtalk.train.stage1.sources.names import SourceName
from fluxtalk.train.stage1.sources.opened import OpenedEncoder, take_weights
from fluxtalk.train.stage1.sources.weights import find_prefix, fit_weights, read_weights


def open_timm(source: SourceName, kind: str) -> OpenedEncoder:
    """Open an image encoder of timm, with the preprocessing that timm resolves for it.

    Weights come from the file after ``@``, from the folder as timm's ``save_for_hf`` wrote it, or from the hub.

    Raises:
        UsageError: timm is missing, does not know the name, or cannot download its weights.
        CheckpointError: a file of weights does not fit.
    """
    timm = import_library("timm", source.text)
    if kind != "image":
        raise UsageError(f"timm has image encoders only; got {source.text} for {kind}.")
    folder = source.folder
    name, arguments, pretrained = source.name, dict[str, Any](), None
    if folder is not None:
        config = _folder_config(source, folder)
        name, pretrained = config["architecture"], config.get("pretrained_cfg")
        arguments = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    elif not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5])
        raise UsageError(f"timm {timm.__version__} knows no model {name}{f'; it knows {close}, ...' * bool(close)}.")
    size = source.options.get("image_size")
    if size is not None and _has_positions(timm, name, arguments):
        # Convolutions take any size; position embeddings are resized to the one asked for.
        arguments = {**arguments, "img_size": size}
    options = {"model": name, "model_args": arguments, **source.chosen()}
    file = source.file or (None if folder is None else _weights_file(source, folder))
    if file is None:
        try:
            model = timm.create_model(name, pretrained=True, num_classes=0, **arguments)
        except Exception as error:  # the hub's client raises its own
            raise UsageError(
                f"The weights of {source.text} cannot be downloaded ({reason(error)}); "
                "give them as timm:NAME@FILE, or timm:FOLDER."
            ) from error
        encoder = wrap_timm(model, options)
    else:
        encoder = build_timm(source.text, options)
        model = encoder.model
        weights = _converted(model, read_weights(file))
        what = f"The weights {file} do not fit {source.text}"
        stored = fit_weights(model, weights, what, ignored=_classifiers(model))
        # Kept in the file's precision.
        model.load_state_dict(stored, assign=True)
    weights = take_weights(encoder)
    asked = {} if size is None else {"input_size": (3, size, size)}
    data = timm.data.resolve_data_config(asked, pretrained_cfg=pretrained or model.pretrained_cfg, model=model)
    return OpenedEncoder(
        source=source.stored,
        options=options,
        encoder=encoder,
        weights=weights,
        preprocess=image_preprocessor_of(data, **source.background),
        about={"library": f"timm {timm.__version__}", "license": (pretrained or model.pretrained_cfg).get("license")},
    )


def _has_positions(timm: Any, name: str, arguments: dict[str, Any]) -> bool:
    with torch.device("meta"):
        return hasattr(timm.create_model(name, pretrained=False, num_classes=0, **arguments), "patch_embed")


def _folder_config(source: SourceName, folder: Path) -> dict[str, Any]:
    try:
        config = read_object(folder / "config.json", any_number=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} has no readable config.json as timm writes it ({reason(error)}).") from None
    if "architecture" not in config:
        raise UsageError(
            f"The config.json of {folder} names no architecture of timm; for transformers, say hf:{folder}."
        )
    return config


def _weights_file(source: SourceName, folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"{source.text} has neither model.safetensors nor pytorch_model.bin; save it with timm again.")


def _converted(model: Any, weights: Any) -> Any:
    """Apply the conversion that timm's own loader applies: other names, position embeddings of another size."""
    prefix = find_prefix(model.state_dict(), weights)
    named = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    convert = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    return named if convert is None else convert(named, model)


def _classifiers(model: Any) -> tuple[str, ...]:
    names = (model.pretrained_cfg or {}).get("classifier") or ()
    return tuple((names,) if isinstance(names, str) else names)
