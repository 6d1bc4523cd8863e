"""Reading JSON that a stranger may have written: the one way in for every artifact and every file of settings.

A file is read only if it is a regular file of a bounded size, so that a pipe or a device neither hangs nor fills the
memory; and what it holds is nested, and its numbers and texts are, as every reader behind expects.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxtalk.field_types import LARGEST_INTEGER

MAX_BYTES = 64 << 20
"""Largest JSON file that is read, unless a caller knows better."""
MAX_DEPTH = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_file(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        OSError: it does not exist, or cannot be opened.
        ValueError: it is a pipe, a device or a folder, or is larger.
    """
    # A pipe without a writer would otherwise keep `open` waiting.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        raise ValueError("it is not a regular file")
    with open(handle, "rb") as file:
        data = file.read(limit + 1) if about.st_size <= limit else b""
    if about.st_size > limit or len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return data


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Read a regular file of UTF-8, with or without a byte order mark.

    Raises:
        OSError, ValueError: as for `read_file`; or it is not UTF-8.
    """
    return read_file(path, limit).decode("utf-8-sig")


def read_json(path: Path, limit: int = MAX_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it does not exist, or cannot be opened.
        ValueError: see `read_file` and `decode_json`; the message says why, without the path.
    """
    return decode_json(read_text(path, limit))


def read_object(path: Path, any_number: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        any_number: take NaN and integers of any size, as other libraries write them.

    Raises:
        OSError, ValueError: as for `read_json`; or it holds something else.
    """
    content = decode_json(read_text(path), any_number)
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    return content


def decode_json(text: str, any_number: bool = False) -> Any:
    """Decode JSON whose values every reader can take.

    Args:
        any_number: as for `read_object`.

    Raises:
        ValueError: it is not valid JSON; is nested more than `MAX_DEPTH` deep; or has a number that is NaN, beyond a
            float, or an integer of more than 64 bits, or text with half a character (a lone surrogate).
    """
    try:
        numbers = {} if any_number else _CHECKED_NUMBERS
        value = json.loads(text, **numbers)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    require_plain(value, bool(_SURROGATE.search(text)))
    return value


def require_plain(value: Any, may_have_surrogates: bool = True) -> None:
    """Refuse a decoded value that is nested too deeply, or has text that is not Unicode.

    Raises:
        ValueError: it is.
    """
    waiting = [(value, 1)]
    while waiting:
        part, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        values = [*part, *part.values()] if isinstance(part, Mapping) else part if isinstance(part, list) else [part]
        for inside in values:
            if isinstance(inside, Mapping | list):
                waiting.append((inside, depth + 1))
            elif may_have_surrogates and isinstance(inside, str):
                _require_unicode(inside)


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it has text with a lone surrogate, which is not valid Unicode") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{_short(digits)} is too large a number")
    return value


def _short_int(digits: str) -> int:
    # Python refuses to convert thousands of digits.
    value = int(digits) if len(digits) < min(1000, sys.get_int_max_str_digits() or 1000) else LARGEST_INTEGER + 1
    if abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{_short(digits)} is an integer of more than 64 bits")
    return value


def _short(digits: str) -> str:
    return digits if len(digits) <= 40 else f"{digits[:40]}..."


_CHECKED_NUMBERS: dict[str, Any] = {
    "parse_constant": _refuse_constant,
    "parse_float": _finite_float,
    "parse_int": _short_int,
}
