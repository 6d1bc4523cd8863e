"""Checks of the library's arguments."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

from fluxtalk.errors import UsageError


def check_integer(name: str, value: SupportsIndex, smallest: int, largest: int | None = None) -> int:
    """Return an argument as a Python integer.

    Raises:
        UsageError: it is not an integer (Python's or numpy's) in that range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < smallest or (largest is not None and number > largest):
        wanted = f"of at least {smallest}" if largest is None else f"from {smallest} to {largest}"
        raise UsageError(f"{name} is an integer {wanted}; got {value!r}.")
    return number


def check_items(items: Any) -> None:
    """Refuse a single item in place of several, and what has no length or no slices.

    Raises:
        UsageError: it is not a list, array or other sequence of items.
    """
    try:
        len(items), items[:0]
        is_one = isinstance(items, str | bytes | bytearray | memoryview | Mapping)
    except (TypeError, LookupError):
        is_one = True
    if is_one:
        raise UsageError(
            f"items is a list of raw inputs; got {type(items).__name__}: put a single one into a list, and make a list "
            "of what has no length or no slices."
        )


def check_modalities(names: Sequence[str] | None, held: Iterable[str]) -> list[str]:
    """Return the modalities that are asked for, all of which a bundle must hold; None is all of these.

    Raises:
        UsageError: the bundle does not embed one.
    """
    all_held = list(held)
    unknown = [name for name in names or () if name not in all_held]
    if unknown:
        raise UsageError(f"This bundle embeds {', '.join(all_held)}; got {', '.join(unknown)}.")
    return all_held if names is None else list(names)
