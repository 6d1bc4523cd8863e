"""An ONNX file from a stranger, looked through before a library loads it: where its tensors say that their bytes are.

A tensor may be kept in a file beside the graph, by name, offset and length, and libraries differ in what they refuse:
OpenVINO 2026.4 takes the place ``*/_ORT_MEM_ADDR_/*`` for an address in its own memory. Our graphs keep large weights
in one file, called like the graph with ``.data``; nothing else is let through.

The file is a Protocol Buffers message (https://protobuf.dev/programming-guides/encoding), of which only the parts that
lead to a tensor are read; field numbers are those of ``onnx.proto3``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from fluxtalk.errors import BundleError

_MOST_FIELDS = 4_000_000
"""Fields that are read at most; a graph of a thousand layers has fewer than a hundredth."""
_DEEPEST = 32
"""Graphs inside of graphs."""
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Message to the field numbers of the messages inside that lead to tensors."""
_EXTERNAL_DATA = 13
_KEYS = {"location", "offset", "length", "checksum"}


def validate_onnx_file(path: Path) -> None:
    """Refuse a graph whose tensors are anywhere but in it, or in the file of its weights.

    Raises:
        BundleError: a tensor names another file, or a part that its file does not have; or the file is malformed.
    """
    weights = path.with_name(f"{path.name}.data")
    size = weights.stat().st_size if weights.is_file() else None
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for place in _Message(content).external_data():
                wrong = _find_wrong(place, weights.name, size)
                if wrong:
                    raise BundleError(
                        f"The graph {path} says that a tensor {wrong}, and only {weights.name} may hold some; "
                        "do not use this bundle."
                    )
    except (ValueError, IndexError) as error:
        raise BundleError(f"The graph {path} is not a valid ONNX file ({error}); do not use this bundle.") from None


def _find_wrong(place: list[tuple[bytes, bytes]], name: str, size: int | None) -> str:
    """Name what is wrong with the place of a tensor, in a few words; empty if nothing is."""
    entries = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in place}
    location = entries.get("location", "")
    if location != name or len(entries) != len(place) or not set(entries) <= _KEYS:
        return f"is at {location[:80]!r}"
    numbers = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(number.isascii() and number.isdigit() and len(number) < 20 for number in numbers):
        return f"is at offset {numbers[0][:40]!r} with length {numbers[1][:40]!r}"
    if size is None or sum(map(int, numbers)) > size:
        return f"is beyond the end of {location}"
    return ""


class _Message:
    """Reads Protocol Buffers in place."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._left = _MOST_FIELDS

    def external_data(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield the keys and values of the place of each tensor that is not in the file.

        Raises:
            ValueError, IndexError: the message is malformed, or too large.
        """
        # Not recursive: how deep a stranger nests is the stranger's choice.
        waiting = [("model", 0, len(self._content), 0)]
        while waiting:
            kind, start, end, depth = waiting.pop()
            if kind == "tensor":
                found = [self._entry(*span) for number, span in self._fields(start, end) if number == _EXTERNAL_DATA]
                if found:
                    yield found
                continue
            if depth > _DEEPEST * 3:
                raise ValueError("its graphs are nested too deeply")
            inside = _INSIDE[kind]
            waiting += [(inside[n], *span, depth + 1) for n, span in self._fields(start, end) if n in inside]

    def _entry(self, start: int, end: int) -> tuple[bytes, bytes]:
        """Read a key and its value."""
        parts = {number: self._content[slice(*span)] for number, span in self._fields(start, end)}
        return parts.get(1, b""), parts.get(2, b"")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield the number and the place of each field that has a length."""
        while start < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"it has more than {_MOST_FIELDS:,} fields")
            tag, start = self._varint(start)
            wire = tag & 7
            if wire == 0:
                _, start = self._varint(start)
            elif wire in (1, 5):
                start += 8 if wire == 1 else 4
            elif wire == 2:
                length, inside = self._varint(start)
                start = inside + length
            else:
                raise ValueError(f"it has a field of the wire type {wire}")
            if start > end:
                raise ValueError("a field is longer than what holds it")
            if wire == 2:
                yield tag >> 3, (inside, start)

    def _varint(self, at: int) -> tuple[int, int]:
        """Read a number, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._content[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise ValueError("it has a number of more than ten bytes")
