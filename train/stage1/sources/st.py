"""`st:NAME` and `st:FOLDER`: the transformer of a sentence-transformers model, its length and its prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.json_files import decode_json, read_text
from fluxtalk.errors import UsageError, reason
from fluxtalk.model.encoders.libraries import import_library
from fluxtalk.train.stage1.sources.hf import open_hf
from fluxtalk.train.stage1.sources.names import SourceName
from fluxtalk.train.stage1.sources.opened import OpenedEncoder

_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]
_NOT = ["onnx/*", "openvino/*", "*.onnx"]


def open_st(
    source: SourceName,
    kind: str,
    allow_code: bool = False,
    prompts: Mapping[str, str] | None = None,
    default_prompt: str | None = None,
) -> OpenedEncoder:
    """Open the transformer of a sentence-transformers model; its pooling is what the register tokens replace.

    Args:
        kind: ``text``, the only one.
        prompts: added to the model's own; of the same name, they win.
        default_prompt: wins over the model's own.

    Raises:
        UsageError: the folder is not one of sentence-transformers, or does not begin with a transformer; and as
            for `open_hf`.
        CheckpointError: as for `open_hf`.
    """
    if kind != "text":
        raise UsageError(f"st: opens text encoders; for {kind}, name the model with hf:, got {source.text}.")
    folder = source.folder or _download(source)
    modules = _json(source, folder / "modules.json")
    first = modules[0] if isinstance(modules, list) and modules and isinstance(modules[0], dict) else {}
    if not str(first.get("type", "")).rpartition(".")[2] == "Transformer":
        raise UsageError(
            f"The first module of {source.text} is {first.get('type', 'missing')}, and not a Transformer, so it has no "
            "token features; name another model."
        )
    inner = folder / first.get("path", "")
    settings = _json(source, inner / "sentence_bert_config.json", {})
    own = _json(source, folder / "config_sentence_transformers.json", {})
    options = dict(source.options)
    options.setdefault("max_length", settings.get("max_seq_length"))
    if options["max_length"] is None:
        del options["max_length"]
    opened = open_hf(
        dataclasses.replace(source, name=str(inner), options=options),
        kind,
        allow_code,
        {**(own.get("prompts") or {}), **(prompts or {})},
        default_prompt or own.get("default_prompt_name"),
        lowercase=bool(settings.get("do_lower_case")),
    )
    return dataclasses.replace(
        opened, source=source.stored, about={**opened.about, "sentence_transformers": own.get("__version__")}
    )


def _download(source: SourceName) -> Path:
    hub: Any = import_library("huggingface_hub", source.text)
    try:
        return Path(hub.snapshot_download(source.name, allow_patterns=_FILES, ignore_patterns=_NOT))
    except Exception as error:  # the hub's client raises many kinds
        raise UsageError(
            f"The encoder {source.text} cannot be downloaded ({reason(error)}); name a folder as sentence-transformers "
            "saved it."
        ) from error


def _json(source: SourceName, path: Path, default: Any = None) -> Any:
    try:
        return decode_json(read_text(path), any_number=True)
    except FileNotFoundError:
        if default is not None:
            return default
        raise UsageError(
            f"{source.text} has no {path.name}, so it is not a folder of sentence-transformers; for one of "
            "transformers, say hf: instead."
        ) from None
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({reason(error)}); restore it.") from None
