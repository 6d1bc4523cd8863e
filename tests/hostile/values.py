"""Values that nobody means, for every typed field of every file that a user writes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from fluxtalk.errors import FluxTalkError

MALFORMED: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    7,
    1.5,
    -0.5,
    1e300,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    10**30,
    float("nan"),
    float("inf"),
    "",
    " ",
    "32",
    "1.5",
    "nan",
    "none",
    "x" * 300,
    "\0",
    "\ud83d",
    "../../etc/passwd",
    "/dev/null",
    "é\u200b",
    [],
    [None],
    [1, "a"],
    [[]],
    [0.5, float("nan"), 0.5],
    {},
    {"a": 1},
    {"": None},
    {"kind": "text"},
)
_DELETED = object()
_BUILT_IN = (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a decoded JSON value, itself included."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], part: Any) -> Any:
    """A copy with another part in one place; with `_DELETED`, without it."""
    if not at:
        return {} if part is _DELETED else part
    changed = copy.deepcopy(value)
    holder = changed
    for key in at[:-1]:
        holder = holder[key]
    if part is _DELETED:
        del holder[at[-1]]
    else:
        holder[at[-1]] = part
    return changed


def malformed(value: Any, given: tuple[Any, ...] = MALFORMED) -> Iterator[tuple[str, Any]]:
    """Every part of a value replaced by every malformed one, left out, and beside an unknown key."""
    for at in places(value):
        for part in (*given, _DELETED):
            shown = "left out" if part is _DELETED else json.dumps(part)
            yield f"{'.'.join(map(str, at)) or 'the whole'} is {shown}", replaced(value, at, part)
    if isinstance(value, dict):
        yield "an unknown key", {**value, "no_such_key": 1}


def require_sentence(read: Callable[[], Any], what: str) -> bool:
    """Read, and return whether it was refused; anything but a deliberate error, in one line, fails."""
    try:
        read()
    except FluxTalkError as error:
        sentence = str(error)
        assert sentence.strip(), what
        assert "\n" not in sentence, (what, sentence)
        assert "Traceback" not in sentence, (what, sentence)
        return True
    except _BUILT_IN as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    return False
