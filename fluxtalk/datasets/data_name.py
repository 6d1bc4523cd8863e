"""Names that ``--data`` takes: tables, shards, ``hfds:DIR``, with or without a query of modalities and their parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from fluxtalk.config import require_modality_name
from fluxtalk.errors import UsageError

GLYPHS = "glyphs"
"""The built-in data set, the only name without a path."""
HUGGING_FACE = "hfds:"
"""Beginning of the name of a data set of the library `datasets`: ``hfds:DIR``."""

# The first suffix that ends the name or stands before a question mark: paths and columns may hold suffixes too.
_FORM = re.compile(r"(?P<path>.+?(?P<suffix>\.csv|\.jsonl|\.parquet|\.tar))(?:\?(?P<query>.*))?", re.IGNORECASE)


@dataclass(frozen=True)
class DataName:
    """``PATH`` or ``PATH?MODALITY=SOURCE&MODALITY=SOURCE``, taken apart."""

    text: str
    """The whole name, which checkpoints and bundles keep."""
    path: str
    suffix: str
    """``.csv``, ``.jsonl``, ``.parquet`` or ``.tar``; `HUGGING_FACE` of a folder of that library."""
    query: Mapping[str, str] | None
    """Key of the query to its value, such as a modality to a column; None if there is no query."""

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return Path(self.path).parent


def parse_data_name(text: str) -> DataName | None:
    """Parse a name of ``--data``; None if it names neither a table nor shards nor ``hfds:DIR``.

    Raises:
        UsageError: the query is malformed, repeats a key, or a key is not a valid modality name.
    """
    if text.startswith(HUGGING_FACE):
        path, mark, asked = text.removeprefix(HUGGING_FACE).partition("?")
        return DataName(text, path, HUGGING_FACE, _parse_query(text, asked) if mark else None)
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    query = None if match["query"] is None else _parse_query(text, match["query"])
    return DataName(text, match["path"], match["suffix"].lower(), query)


def _parse_query(text: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        pairs = []
    if not pairs or not all(key and value for key, value in pairs):
        raise UsageError(
            f"The part of --data after the question mark is key=value, joined by &, as in image=photo&text=caption; "
            f"got {query!r} in {text!r}."
        )
    keys = [key for key, _ in pairs]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise UsageError(f"--data names {', '.join(repeated)} more than once in {text!r}; name each once.")
    for key in keys:
        require_modality_name(key)
    return dict(pairs)
