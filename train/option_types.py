"""Option values from Python (numpy numbers, paths) as the plain types that files hold."""

from __future__ import annotations

import math
import numbers
import operator
import os
from typing import Any

from fluxtalk.config import require


def spelled(name: str) -> str:
    """Return the spelling of an option on the command line: ``--batch-size`` for ``batch_size``."""
    return "--" + name.replace("_", "-")


def plain(name: str, value: Any, hint: Any) -> Any:
    """Convert an option's value to ``str``, ``int``, ``float`` or ``bool``.

    Args:
        hint: its declared type: one of those four, or ``str | None``.

    Raises:
        UsageError: the value is of another type, or a number that is not finite.
    """
    if hint is bool:
        require(isinstance(value, bool), f"{spelled(name)} is True or False; got {value!r}.")
        return value
    if hint is int:
        return _integer(name, value)
    if hint is float:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        require(real and _is_finite(value), f"{spelled(name)} is a finite number; got {value!r}.")
        return float(value)
    if value is None and hint is not str:
        return None
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    require(isinstance(text, str), f"{spelled(name)} is a string or a path; got {value!r}.")
    # numpy's strings are a subclass of Python's.
    return str(text)


def _integer(name: str, value: Any) -> int:
    try:
        require(not isinstance(value, bool), f"{spelled(name)} is an integer; got {value!r}.")
        return operator.index(value)
    except TypeError:
        require(False, f"{spelled(name)} is an integer; got {value!r}.")
        raise


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False
