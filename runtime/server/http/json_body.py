"""JSON bodies to typed structs. The one place that turns msgspec's errors into our sentences.

A body's struct (`Body`) is its whole declaration: what is decoded, refused, and described in the OpenAPI document.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from fluxtalk.runtime.server.http.errors import ApiError, bad_request

_WHERE = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_STEP = re.compile(r"[^.\[\]]+")
_GOT = {dict: "an object", list: "a list", bool: "a boolean", type(None): "null", float: "a number", bytes: "a file"}
_NAMES = {
    inspect.StrType: "a string",
    inspect.IntType: "an integer",
    inspect.FloatType: "a number",
    inspect.BoolType: "true or false",
    inspect.DictType: "an object",
    inspect.AnyType: "a value",
}


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of every body, and of every object in one: a field that nothing reads is a misspelled one."""


B = TypeVar("B", bound=Body)


def decode_json(data: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        ApiError: 400: it is not valid JSON, or not an object.
    """
    try:
        # Untyped first: only what it holds says which struct it is. A flat copy into that costs little.
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        reason = _WHERE.sub("", str(error)) if isinstance(error, msgspec.DecodeError) else "it is nested too deeply"
        raise bad_request(f"The body is not valid JSON: {reason}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise bad_request(f"The body must be a JSON object; got {_got(body)}.", code="invalid_json")
    return body


def convert(body: dict[str, Any], to: type[B], *, strict: bool = True, at: str = "") -> B:
    """Check a decoded body against its struct.

    Args:
        strict: False takes ``"2"`` for an integer and ``"0.5"`` for a number, as forms and queries write them; nothing
            else is converted.
        at: path of this object in the body, for errors.

    Raises:
        ApiError: 400, with the field at fault.
    """
    try:
        return msgspec.convert(body if strict else _with_numbers(body, to), to)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), body, to, at) from None


def _with_numbers(body: dict[str, Any], to: type[Body]) -> dict[str, Any]:
    """Convert the decimal digits of fields of numbers; msgspec's own lax mode takes ``1e2`` and ``null``, too."""
    numbers: dict[str, type[int] | type[float]] = {}
    for field in cast(inspect.StructType, inspect.type_info(to)).fields:
        for member in _members(field.type):
            if isinstance(member, inspect.IntType | inspect.FloatType):
                numbers[field.encode_name] = int if isinstance(member, inspect.IntType) else float
    return {
        name: numbers[name](value) if name in numbers and _is_decimal(value, numbers[name]) else value
        for name, value in body.items()
    }


def _is_decimal(value: object, number: type[int] | type[float]) -> bool:
    if not isinstance(value, str) or len(value) >= 19:
        return False
    return re.fullmatch(r"[0-9]+" if number is int else r"[0-9]+(\.[0-9]+)?", value) is not None


def _refusal(message: str, body: dict[str, Any], to: type[Body], at: str) -> ApiError:
    where = _WHERE.search(message)
    path = where["path"] if where else ""
    steps = [int(step) if step.isdecimal() else step for step in _STEP.findall(path)]
    path = ".".join(filter(None, (at, path)))
    if message.startswith("Object contains unknown field `"):
        return _unknown(message.split("`")[1], path, _fields(_type_at(to, steps)))
    if message.startswith("Object missing required field `"):
        field = message.split("`")[1]
        described = _described(_type_at(to, [*steps, field]))
        return bad_request(f"{path}{'.' * bool(path)}{field} is missing; give {described}.", path or field, "missing")
    value: Any = body
    for step in steps:
        value = value[step]
    expected = _type_at(to, steps)
    if isinstance(expected, inspect.LiteralType) and steps and isinstance(steps[-1], int):
        # The list is the field, and not one of its choices.
        path, expected = path.rpartition("[")[0], _type_at(to, steps[:-1])
    code = "invalid_type" if ", got `" in message else "invalid_value"
    return bad_request(f"{path or 'The body'} must be {_described(expected)}; got {_got(value)}.", path or None, code)


def _unknown(field: str, path: str, known: Sequence[str]) -> ApiError:
    kind = f"the {path.rpartition('.')[2]} " if path and not path.endswith("]") else ""
    names = f"{', '.join(known[:-1])} and {known[-1]}" if len(known) > 1 else "".join(known)
    sentence = f"The field {field[:80]!r} is unknown; known are {kind}{names}."
    return bad_request(sentence, path or field[:80], "unknown_field")


def _type_at(to: Any, steps: Sequence[str | int]) -> inspect.Type:
    """The declared type of a part of a body."""
    found = inspect.type_info(to)
    for step in steps:
        for candidate in _members(found):
            if isinstance(step, int) and isinstance(candidate, inspect.ListType):
                found = candidate.item_type
                break
            if isinstance(step, str) and isinstance(candidate, inspect.StructType):
                found = next(field.type for field in candidate.fields if field.encode_name == step)
                break
        else:
            return inspect.AnyType()
    return found


def _members(of: inspect.Type) -> list[inspect.Type]:
    if isinstance(of, inspect.Metadata):
        return _members(of.type)
    return [member for part in of.types for member in _members(part)] if isinstance(of, inspect.UnionType) else [of]


def _fields(of: inspect.Type) -> list[str]:
    structs = [member for member in _members(of) if isinstance(member, inspect.StructType)]
    return [field.encode_name for struct in structs for field in struct.fields]


def _described(of: inspect.Type) -> str:
    """A type in words: "a list of float or base64"."""
    if isinstance(of, inspect.Metadata):
        described = (of.extra_json_schema or {}).get("description")
        return str(described) if described else _described(of.type)
    if isinstance(of, inspect.UnionType):
        return " or ".join(_described(part) for part in of.types if not isinstance(part, inspect.NoneType))
    if isinstance(of, inspect.LiteralType):
        return " or ".join(map(str, of.values))
    if isinstance(of, inspect.StructType):
        return f"an object with the fields {', '.join(_fields(of))}"
    if isinstance(of, inspect.ListType):
        low, high = of.min_length or 0, of.max_length
        size = {(1, None): " of at least one", (1, 1): " of one"}.get(
            (low, high), f" of {low} to {high}" if high else ""
        )
        item = "" if isinstance(of.item_type, inspect.AnyType) else f": each {_described(of.item_type)}"
        return f"a list{size}{item}"
    if isinstance(of, inspect.IntType) and (of.ge is not None or of.le is not None):
        return f"an integer from {of.ge} to {of.le:,}" if of.le is not None else f"an integer of at least {of.ge}"
    if isinstance(of, inspect.FloatType) and of.ge is not None and of.le is not None:
        return f"a number from {of.ge:g} to {of.le:g}"
    if isinstance(of, inspect.FloatType) and of.gt is not None:
        return f"a number above {of.gt:g}"
    return _NAMES.get(type(of), "another value")


def _got(value: Any) -> str:
    """A value in words, short whatever it is."""
    if isinstance(value, str):
        return repr(value[:80])
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return str(value)
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    return _GOT.get(type(value), "a number")
