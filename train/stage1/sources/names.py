"""Names of pretrained encoders, as ``--encoder MODALITY=SOURCE`` and encoders.json take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from PIL import ImageColor

from fluxtalk.errors import UsageError
from fluxtalk.model.encoders.libraries import LIBRARIES

KINDS = ("image", "text", "audio")
_TEXT = {"max_length": int, "padding": str}
_OPTIONS: dict[str, type] = {
    "kind": str,
    "layer": int,
    "class_tokens": str,
    "pooled": str,
    "image_size": int,
    "background": str,
    **_TEXT,
}


@dataclass(frozen=True)
class SourceName:
    """``LIBRARY:NAME[@FILE][?KEY=VALUE&KEY=VALUE]``, taken apart."""

    text: str
    """The name as it was given, without its options."""
    library: str
    """One of `LIBRARIES`."""
    name: str
    """A name that the library knows, or a folder."""
    file: Path | None
    """File of weights, instead of those that the library would download."""
    options: Mapping[str, Any]
    """Choice of its outputs, and how to feed it: see docs/encoders.md."""

    @property
    def folder(self) -> Path | None:
        """The folder that the name is, or None if it is a name that the library knows.

        Raises:
            UsageError: it is written as a path, and there is no such folder.
        """
        path = Path(self.name).expanduser()
        if path.is_dir():
            return path
        if self.name.startswith((".", "/", "~")):
            raise UsageError(f"The encoder {self.text} names a folder that does not exist; check the path.")
        return None

    @property
    def stored(self) -> str:
        """The name that a checkpoint keeps: of folders and files, their last part only."""
        name = self.name if self.folder is None else self.folder.resolve().name
        return f"{self.library}:{name}{'' if self.file is None else f'@{self.file.name}'}"

    def within(self, folder: Path) -> SourceName:
        """Resolve a folder and a file of weights that are named relative to a folder."""
        name = str(folder / self.name) if (folder / self.name).is_dir() else self.name
        file = self.file if self.file is None or not (folder / self.file).is_file() else folder / self.file
        return dataclasses.replace(self, name=name, file=file)

    @property
    def background(self) -> dict[str, tuple[int, int, int] | None]:
        """Color under transparent pixels as a keyword argument, empty if none is named.

        Raises:
            UsageError: it is not a color's name, a code such as #ffffff, or none.
        """
        name = self.options.get("background")
        if name is None:
            return {}
        if name == "none":
            return {"background": None}
        try:
            red, green, blue = ImageColor.getrgb(name)[:3]
        except ValueError:
            raise UsageError(
                f"The background of {self.text} is a color, such as white or #ffffff, or none; got {name!r}."
            ) from None
        return {"background": (red, green, blue)}

    def chosen(self) -> dict[str, Any]:
        """Options that say which of the encoder's outputs are its features."""
        return {key: self.options[key] for key in ("layer", "class_tokens", "pooled") if key in self.options}


def parse_source(source: str, options: Mapping[str, Any] | None = None) -> SourceName:
    """Parse the name of an encoder of another library.

    Args:
        options: what encoders.json says beside the name; they win over those in it.

    Raises:
        UsageError: the name is malformed, or an option is unknown or has a value of another type.
    """
    body, _, query = source.partition("?")
    library, _, name = body.partition(":")
    if library not in LIBRARIES or not name:
        raise UsageError(f"A pretrained encoder is {', '.join(f'{one}:NAME' for one in LIBRARIES)}; got {source!r}.")
    whole = name
    name, at, file = name.partition("@")
    if at and library in ("hf", "st") and Path(whole).expanduser().is_dir():
        name, at, file = whole, "", ""
    if (at and not file) or (at and library in ("hf", "st")):
        raise UsageError(f"Weights in a file of their own are timm:NAME@FILE or open_clip:NAME@FILE; got {source!r}.")
    try:
        pairs = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError:
        raise UsageError(
            f"What follows the question mark of an encoder is key=value, joined by &; got {query!r} in {source!r}."
        ) from None
    return SourceName(
        text=body,
        library=library,
        name=name,
        file=Path(file).expanduser() if file else None,
        options={**_typed(source, pairs), **_typed(source, options or {})},
    )


def _typed(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    typed: dict[str, Any] = {}
    for key, value in options.items():
        name = key.replace("-", "_")
        if name not in _OPTIONS:
            raise UsageError(f"An encoder's options are {', '.join(_OPTIONS)}; got {key!r} in {source!r}.")
        if _OPTIONS[name] is int and not (isinstance(value, int) and not isinstance(value, bool)):
            try:
                value = int(str(value))
            except ValueError:
                raise UsageError(f"The option {key} of {source!r} is a whole number; got {value!r}.") from None
        if _OPTIONS[name] is str and not isinstance(value, str):
            raise UsageError(f"The option {key} of {source!r} is a string; got {value!r}.")
        typed[name] = value
    return typed
