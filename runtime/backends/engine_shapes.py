"""Which optimization profile takes a batch, padded to what, in how many parts.

An engine takes sizes between the smallest and the largest of a profile. A batch or length below the smallest is padded
up to it (padding changes no row, and a larger k no smaller one); more rows than the largest go in parts; what else is
too large is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import TOKEN_INDEX
from fluxtalk.artifacts.engine import Profile
from fluxtalk.errors import InputError
from fluxtalk.runtime.backends.session import Arrays

Axis = str | int
"""``batch``, ``length`` or ``k``; or the size of a dimension that is always the same."""
Sizes = dict[str, int]
"""Axis to size."""

_STEPS = 4


@dataclass(frozen=True)
class Input:
    """One input of an engine."""

    dtype: np.dtype[Any]
    axes: tuple[Axis, ...]

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Its shape at those sizes."""
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)


def input_of(name: str, dtype: str, shape: Sequence[int]) -> Input:
    """An input, by the order of axes that every graph of a bundle has.

    Args:
        shape: -1 where the size is dynamic.
    """
    names = ("k",) if name == TOKEN_INDEX else ("batch", "length")
    axes = [names[i] if size < 0 else size for i, size in enumerate(shape)]
    return Input(np.dtype(dtype), tuple(axes))


@dataclass(frozen=True)
class Layout:
    """The inputs of an engine and its profiles."""

    modality: str
    inputs: Mapping[str, Input]
    profiles: Sequence[Profile]

    def sizes(self, inputs: Arrays) -> Sizes:
        """The sizes of a batch.

        Raises:
            InputError: an input is missing, unknown, of another type or shape, or they do not belong together.
        """
        if set(inputs) != set(self.inputs):
            raise InputError(
                f"The engine of {self.modality} takes the inputs {', '.join(self.inputs)}; got {', '.join(inputs)}."
            )
        sizes: Sizes = {}
        for name, expected in self.inputs.items():
            array = inputs[name]
            wrong = array.ndim != len(expected.axes) or array.dtype != expected.dtype
            for axis, size in zip(expected.axes, array.shape, strict=False):
                wrong |= size != axis if isinstance(axis, int) else sizes.setdefault(axis, size) != size
            if wrong:
                shape = ", ".join(map(str, expected.axes))
                raise InputError(
                    f"The engine of {self.modality} takes {name} as {expected.dtype} ({shape}); "
                    f"got {array.dtype} {array.shape} beside {sizes}."
                )
        # Where it has one token only, k is no axis of the graph.
        return {axis: sizes.get(axis, 1) for axis in self.profiles[0]}

    def parts(self, sizes: Sizes) -> Iterator[slice]:
        """The rows of a batch, cut into parts that a profile takes.

        Raises:
            InputError: no profile takes the other sizes.
        """
        fitting = [p for p in self.profiles if all(sizes[a] <= p[a][2] for a in p if a != "batch")]
        if not fitting:
            ranges = " or ".join(
                ", ".join(f"{axis} {low} to {high}" for axis, (low, _, high) in p.items()) for p in self.profiles
            )
            got = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
            raise InputError(
                f"The engine of {self.modality} was built for {ranges}; got {got}: shorten the input, or build "
                f"another with `fluxtalk-export trt --profile {self.modality}:...`."
            )
        largest = max(profile["batch"][2] for profile in fitting)
        for start in range(0, max(1, sizes["batch"]), largest):
            yield slice(start, min(start + largest, sizes["batch"]))

    def choose(self, sizes: Sizes, rounded: bool) -> tuple[int, Sizes]:
        """The tightest profile that takes a part, and the sizes it is padded to.

        Args:
            rounded: whether to pad to one of few sizes, so that what is captured for one is met again.
        """
        candidates = [
            (prod(padded.values()), prod(high for _, _, high in profile.values()), number, padded)
            for number, profile in enumerate(self.profiles)
            if (padded := _padded(profile, sizes, rounded)) is not None
        ]
        _, _, number, padded = min(candidates, key=lambda candidate: candidate[:3])
        return number, padded


def bucket(size: int) -> int:
    """The next of few sizes: four in every doubling, so that at most a quarter is padding."""
    if size <= _STEPS:
        return size
    step = (1 << ((size - 1).bit_length() - 1)) // _STEPS
    return -(-size // step) * step


def write_padded(target: NDArray[Any], array: NDArray[Any], name: str) -> None:
    """Write an input into a larger array: zeros behind it, or the further token positions."""
    if name == TOKEN_INDEX:
        target[: len(array)] = array
        target[len(array) :] = np.arange(len(array), len(target))
        return
    inner = tuple(slice(0, size) for size in array.shape)
    if target.shape != array.shape:
        target[len(array) :] = 0
        if target.ndim > 1:
            target[: len(array), array.shape[1] :] = 0
    target[inner] = array


def _padded(profile: Profile, sizes: Sizes, rounded: bool) -> Sizes | None:
    result = {}
    for axis, (low, _, high) in profile.items():
        if sizes[axis] > high:
            return None
        wanted = bucket(sizes[axis]) if rounded and axis != "k" else sizes[axis]
        result[axis] = min(max(wanted, low), high)
    return result
