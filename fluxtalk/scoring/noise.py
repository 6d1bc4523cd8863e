"""Noise of float32 on a graph, and the promise that follows from it. Numpy only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fluxtalk.config import StrictConfig, require
from fluxtalk.scoring.parity import TOLERANCES, Tolerance

FACTOR = 4
"""Promise as a multiple of the noise: two float32 implementations are each that far from float64, twice for margin."""
FLOOR, CEILING = 1e-6, 1e-5
"""Smallest promise on an element of an embedding, whose length is 1, and the largest with `CEILING_DIM` numbers."""
CEILING_DIM = 256
"""Numbers of a token, or more, for which `CEILING` is the largest promise; narrower ones: `ceiling`."""
TOKEN_FLOOR, TOKEN_CEILING = 1e-5, 1e-4
"""Smallest and largest promise on an element of a token, relative to max(1, the largest)."""


def ceiling(dim: int) -> float:
    """Give the largest promise on an element of a vector of ``dim`` numbers and length 1.

    An element of such a vector is about dim^-1/2, and so is what the same relative error moves it by: what is promised
    of a token of 64 numbers is as exact as half of it is of one of 256.
    """
    return CEILING * max(1.0, math.sqrt(CEILING_DIM / dim))


@dataclass(frozen=True)
class Float32Noise(StrictConfig):
    """Largest difference of eager float32 from eager float64 on a modality's golden inputs, over every k.

    The fields' names are those of the bundle's manifest.
    """

    embeddings: float | None = None
    """Noise of an embedding's element, the largest over thread counts; None if float64 is not a reference."""
    tokens: float | None = None
    """Noise of a token's element, relative to max(1, the largest)."""
    threads: dict[str, float] = field(default_factory=dict)
    """Thread count of eager PyTorch to the difference of the embeddings."""
    no_reference: str = ""
    """Reason why float64 is not a reference; empty if it is."""
    promise: float = FLOOR
    """Promised bound on an embedding's element where ONNX Runtime runs the float32 graph on a CPU."""
    token_promise: float = TOKEN_FLOOR
    """The same of a token's element, relative to max(1, the largest)."""

    def __post_init__(self) -> None:
        for name in ("embeddings", "tokens", "promise", "token_promise"):
            value = getattr(self, name)
            missing = value is None and name in ("embeddings", "tokens")
            require(missing or (isinstance(value, int | float) and value >= 0), f"{name} is a number; got {value!r}")
        require(isinstance(self.threads, dict), f"threads is an object; got {self.threads!r}")
        require(isinstance(self.no_reference, str), f"no_reference is text; got {self.no_reference!r}")

    @classmethod
    def measured(cls, embeddings: Mapping[str, float], tokens: float) -> Float32Noise:
        """Derive the promise from a measurement: four times the noise, at least the floor. It may exceed the ceiling.

        Args:
            embeddings: thread count to the difference of the embeddings.
            tokens: relative difference of the tokens.
        """
        largest = max(embeddings.values())
        return cls(
            largest,
            tokens,
            dict(embeddings),
            promise=max(FLOOR, FACTOR * largest),
            token_promise=max(TOKEN_FLOOR, FACTOR * tokens),
        )

    def too_large(self, dim: int) -> bool:
        """Return whether nothing can be promised of tokens of ``dim`` numbers, as the promise exceeds its ceiling."""
        return not (self.promise <= ceiling(dim) and self.token_promise <= TOKEN_CEILING)

    @property
    def noise(self) -> float:
        """Noise of an embedding's element; the one that the floor stands for, if it could not be measured."""
        return FLOOR / FACTOR if self.embeddings is None else self.embeddings

    @property
    def tolerance(self) -> Tolerance:
        """Tolerance of the float32 graph on the machine that exports it."""
        return self.apply_to(TOLERANCES["fp32"])

    def apply_to(self, tolerance: Tolerance) -> Tolerance:
        """Replace the bounds of float32 by those promised here."""
        bounds = dict.fromkeys(("max_abs", "prefix", "rows"), self.promise)
        return dataclasses.replace(tolerance, **bounds, tokens=self.token_promise)

    def line(self) -> str:
        """One line for people."""
        if self.no_reference:
            return f"noise of float32 not measured ({self.no_reference}), promised {self.promise:.0e}"
        counts = ", ".join(
            f"{value:.1e} with {count} thread{'s' * (count != '1')}" for count, value in self.threads.items()
        )
        return f"noise of float32 {counts}; promised {self.promise:.1e}"


def float32_tolerance(tolerance: Tolerance, noises: Iterable[Float32Noise]) -> Tolerance:
    """Widen the tolerance of float32 in other libraries to what the graphs promise on a CPU, where that is more."""
    largest = max((noise.promise for noise in noises), default=0.0)
    bounds = {name: max(getattr(tolerance, name), largest) for name in ("max_abs", "prefix", "rows")}
    return dataclasses.replace(tolerance, **bounds)
