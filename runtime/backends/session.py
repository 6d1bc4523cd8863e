"""`Session`: the interface that everything which runs a graph has; and a fake one for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from fluxtalk.arrays import Array, Arrays, Floats
from fluxtalk.artifacts.bundle import OUTPUTS, TOKEN_INDEX


class Session(Protocol):
    """Runs the graph of one modality. Thread-safe."""

    @property
    def backend(self) -> str:
        """Name of the backend, as it is asked for: ``ort-cpu``, ``tensorrt``, ..."""

    @property
    def max_length(self) -> int | None:
        """Length of the longest input that the graph was compiled for; None if it takes any, or inputs have no length.

        It can be shorter than the longest that preprocessing gives (`ModalityEntry.max_length`).
        """

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, Floats]:
        """Run the graph.

        Args:
            inputs: name to array, as preprocessing collates them.
            k: register tokens to compute, from the first.
            outputs: names of the outputs to compute; ``attention`` only if the bundle has it.

        Returns:
            ``tokens`` and ``embeddings``, float32 (batch, k, dim); ``attention``, float32 (batch, k, length).
        """

    def describe(self) -> str:
        """Name the backend and its settings, for people."""

    def close(self) -> None:
        """Release memory and threads; the session cannot run afterwards."""


def with_token_index(inputs: Arrays, k: int) -> dict[str, Array]:
    """Add the graph's input that says which register tokens to compute: ``token_index``, int64 (k,)."""
    return {**inputs, TOKEN_INDEX: np.arange(k, dtype=np.int64)}


class FakeSession:
    """A session without a graph, for tests of everything above it.

    Token ``j`` of a row depends on the row's input and on j alone: it is the same at every larger k and in every batch.

    Args:
        dim: numbers of a token.
        num_overlapping: tokens that are pooled, from the first.
        on_run: called with the inputs and the k of every run.
    """

    backend: str = "fake"
    max_length: int | None = None

    def __init__(
        self, dim: int = 8, num_overlapping: int = 3, on_run: Callable[[Arrays, int], None] | None = None
    ) -> None:
        self._dim = dim
        self._num_overlapping = num_overlapping
        self._on_run = on_run
        self.closed = False

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, Floats]:
        if self.closed:
            raise RuntimeError("this session is closed")
        if self._on_run is not None:
            self._on_run(inputs, k)
        values = next(array for name, array in inputs.items() if name != "mask")
        mask = inputs.get("mask")
        tokens = np.stack([self._row(row if mask is None else row[mask[i]], k) for i, row in enumerate(values)])
        weights = np.arange(1, tokens.shape[1] + 1)[:, None]
        kept = np.where(np.arange(tokens.shape[1])[:, None] < self._num_overlapping, tokens, 0)
        means = kept.cumsum(axis=1) / np.minimum(weights, self._num_overlapping)
        embeddings = (means / np.linalg.norm(means, axis=-1, keepdims=True)).astype(np.float32)
        return {name: {"tokens": tokens, "embeddings": embeddings}[name] for name in outputs}

    def describe(self) -> str:
        return "fake"

    def close(self) -> None:
        self.closed = True

    def _row(self, row: Array, k: int) -> Floats:
        seed = np.frombuffer(np.ascontiguousarray(row).tobytes().ljust(1), dtype=np.uint8).astype(np.uint64)
        mixed = int((seed * np.arange(1, len(seed) + 1, dtype=np.uint64)).sum() % (2**32))
        return np.stack([np.random.default_rng([mixed, j]).standard_normal(self._dim) for j in range(k)]).astype(
            np.float32
        )
