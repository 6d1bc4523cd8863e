"""Inputs of a compiled engine, and the optimization profile that takes a batch of them.

An engine takes sizes between the smallest and the largest of a profile. A batch or length below the smallest is padded
up to it (padding changes no row, and tokens are the same at a larger k); more rows than the largest run in parts; any
other size above the largest is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np

from fluxtalk.arrays import Array, Arrays
from fluxtalk.artifacts.bundle import TOKEN_INDEX
from fluxtalk.artifacts.engine import Profile
from fluxtalk.errors import InputError

Axis = str | int
"""``batch``, ``length`` or ``k``; or the size of a dimension that never varies."""
AxisSizes = dict[str, int]
"""Axis to size."""

_STEPS = 4


@dataclass(frozen=True)
class EngineInput:
    """One input of an engine."""

    dtype: np.dtype[Any]
    axes: tuple[Axis, ...]

    def shape(self, sizes: AxisSizes) -> tuple[int, ...]:
        """Shape at those sizes."""
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)

    @classmethod
    def from_dynamic(cls, name: str, dtype: str, shape: Sequence[int]) -> Self:
        """Name an input's dynamic axes, by the order that every graph of a bundle has.

        Args:
            shape: sizes; -1 if dynamic.
        """
        names = ("k",) if name == TOKEN_INDEX else ("batch", "length")
        return cls(np.dtype(dtype), tuple(names[i] if size < 0 else size for i, size in enumerate(shape)))


@dataclass(frozen=True)
class EngineInputs:
    """All inputs of an engine, and the profiles that say which sizes it takes."""

    modality: str
    tensors: Mapping[str, EngineInput]
    """Input by name."""
    profiles: Sequence[Profile]

    def sizes(self, inputs: Arrays) -> AxisSizes:
        """Check a batch and give the size of each axis.

        Raises:
            InputError: an input is missing, unknown, of another type or shape, or two disagree about an axis.
        """
        if set(inputs) != set(self.tensors):
            raise InputError(
                f"The engine of {self.modality} takes the inputs {', '.join(self.tensors)}; got {', '.join(inputs)}."
            )
        sizes: AxisSizes = {}
        for name, expected in self.tensors.items():
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
        # The graph of a bundle with a single token has no axis k.
        return {axis: sizes.get(axis, 1) for axis in self.profiles[0]}

    def parts(self, sizes: AxisSizes) -> Iterator[slice]:
        """Cut the rows of a batch into parts that a profile takes.

        Raises:
            InputError: no profile takes the length and k.
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

    def choose_profile(self, sizes: AxisSizes, rounded: bool) -> tuple[int, AxisSizes]:
        """Choose the tightest profile that takes a part.

        Args:
            rounded: pad to one of few sizes (`bucket_size`), so that CUDA graphs recorded for one are used again.

        Returns:
            the profile's number, and the sizes to pad to.
        """
        candidates = [
            (prod(padded.values()), prod(high for _, _, high in profile.values()), number, padded)
            for number, profile in enumerate(self.profiles)
            if (padded := _padded(profile, sizes, rounded)) is not None
        ]
        _, _, number, padded = min(candidates, key=lambda candidate: candidate[:3])
        return number, padded


def bucket_size(size: int, steps: int = _STEPS) -> int:
    """Round up to one of few sizes: ``steps`` in every doubling, so that at most a quarter (of 4) is padding.

    Args:
        steps: a power of two.
    """
    if size <= steps:
        return size
    step = (1 << ((size - 1).bit_length() - 1)) // steps
    return -(-size // step) * step


def write_padded(target: Array, array: Array, name: str) -> None:
    """Write an input into a larger array, followed by zeros, or by further positions if it is the token index."""
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


def _padded(profile: Profile, sizes: AxisSizes, rounded: bool) -> AxisSizes | None:
    result = {}
    for axis, (low, _, high) in profile.items():
        if sizes[axis] > high:
            return None
        wanted = bucket_size(sizes[axis]) if rounded and axis != "k" else sizes[axis]
        result[axis] = min(max(wanted, low), high)
    return result
