"""Options of `fluxtalk-train` from a TOML or JSON file, such as a run's own run.json, and what overrides them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from fluxtalk.artifacts.json_files import decode_json, read_text
from fluxtalk.artifacts.run import FORMAT
from fluxtalk.errors import UsageError, reason
from fluxtalk.train.config import RECIPES, TrainConfig
from fluxtalk.train.option_types import plain, spelled


def read_options(path: Path) -> dict[str, Any]:
    """Read the options that a file sets, checked by name and type.

    Args:
        path: a .toml or .json file of options by their names in `TrainConfig`; or a run.json, whose ``options`` count.

    Raises:
        UsageError: the file is missing or malformed, or has an unknown option or a value of another type.
    """
    content = _parse(path)
    if content.get("format") == FORMAT:
        content = content.get("options", {})
    hints = get_type_hints(TrainConfig)
    for name in content:
        if name not in hints:
            close = difflib.get_close_matches(name.replace("-", "_"), hints, 1)
            meant = f"did you mean {close[0]}?" if close else "fluxtalk-train --help lists them, here with underscores."
            raise UsageError(f"{path} sets {name}, which is not an option of fluxtalk-train; {meant}")
    try:
        return {name: plain(name, value, hints[name]) for name, value in content.items()}
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from None


def merge_options(file: Mapping[str, Any], typed: Mapping[str, Any]) -> TrainConfig:
    """Build a configuration from a file and the options typed beside it.

    Later ones win: defaults, the file's recipe, the file, a typed recipe, typed options. A typed recipe replaces what
    the file says of every option that any recipe sets.

    Raises:
        UsageError: an option is missing or has an impossible value.
    """
    options: dict[str, Any] = {}
    for source in (file, typed):
        if source.get("recipe") in RECIPES:
            options |= _recipe(source["recipe"])
        options |= source
    missing = [name for name in TrainConfig.required() if name not in options]
    if missing:
        shown = ", ".join(spelled(name) for name in missing)
        raise UsageError(f"Training needs {shown}; type it, or set it in the file of --config.")
    return TrainConfig(**options)


def _recipe(name: str) -> dict[str, Any]:
    """Values of every option that any recipe sets."""
    fields = TrainConfig.__dataclass_fields__
    return {option: fields[option].default for recipe in RECIPES.values() for option in recipe} | RECIPES[name]


def _parse(path: Path) -> dict[str, Any]:
    if path.suffix not in (".toml", ".json"):
        raise UsageError(f"--config is a .toml or .json file; got {path}.")
    try:
        text = read_text(path)
        content = tomllib.loads(text) if path.suffix == ".toml" else decode_json(text)
    except FileNotFoundError:
        raise UsageError(f"The file {path} of --config does not exist; check the path.") from None
    except (ValueError, RecursionError) as error:  # both decoders' errors, and text that is not UTF-8
        raise UsageError(f"{path} is not valid {path.suffix[1:].upper()} ({reason(error)}); correct it.") from None
    if not isinstance(content, dict):
        raise UsageError(f'{path} is not an object of options; write {{"epochs": 10}}.')
    return content
