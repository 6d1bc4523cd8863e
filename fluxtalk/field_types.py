"""Values of JSON and TOML held against the annotations of dataclass fields."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST_INTEGER = (1 << 63) - 1
"""Beyond it, numpy and every library behind would overflow."""
_WORDS = {int: "an integer of at most 64 bits", float: "a finite number", str: "text", bool: "true or false"}


_TYPES: dict[type, Mapping[str, Any]] = {}


def field_types(cls: type) -> Mapping[str, Any]:
    """Types of a dataclass's fields by name; worked out once."""
    if cls not in _TYPES:
        hints = get_type_hints(cls)
        _TYPES[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return _TYPES[cls]


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotated type.

    An integer is also a number, and true is neither; what has no range of its own is at most 64 bits, or finite. The
    parts of lists, tuples and objects are looked at too. Types that JSON does not have are looked at by their class.
    """
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if hint is int:
        return type(value) is int and -LARGEST_INTEGER <= value <= LARGEST_INTEGER
    if hint is float:
        return (type(value) is float and math.isfinite(value)) or fits(value, int)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        return isinstance(value, tuple | list) and _parts_fit(value, parts)
    if origin in (list, Sequence):
        return isinstance(value, list | tuple) and all(fits(part, parts[0]) for part in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    return isinstance(value, hint) if isinstance(hint, type) else True


def _parts_fit(values: Sequence[Any], parts: tuple[Any, ...]) -> bool:
    """The same for a tuple, of any length if its type ends with an ellipsis."""
    if len(parts) == 2 and parts[1] is Ellipsis:
        return all(fits(value, parts[0]) for value in values)
    return len(values) == len(parts) and all(fits(value, part) for value, part in zip(values, parts, strict=True))


def type_words(hint: Any) -> str:
    """Words for an annotated type, for people."""
    if hint is None or hint is type(None):
        return "null"
    if hint in _WORDS:
        return _WORDS[hint]
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_words(part) for part in parts))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (list, tuple, Sequence):
        return f"a list, each {type_words(parts[0])}"
    if origin in (dict, Mapping):
        return "an object" if parts[1] is Any else f"an object, each value {type_words(parts[1])}"
    return "an object" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint))


def shown(value: Any, length: int = 60) -> str:
    """Spell a value for a sentence, cut if it is long; an integer of any size is spelled by its digits' number."""
    if type(value) is int and abs(value) > LARGEST_INTEGER:
        return f"an integer of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
