"""The seam between the runtime and whatever runs a graph: `Session`, and a fake that ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import OUTPUTS, TOKEN_INDEX

Arrays = Mapping[str, NDArray[Any]]


class Session(Protocol):
    """Runs one modality's graph. Thread-safe."""

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, NDArray[np.float32]]:
        """Run the graph.

        Args:
            inputs: name to array, as preprocessing collates them.
            k: register tokens to compute, from the first.
            outputs: which to give; ``attention`` only where the bundle has it.

        Returns:
            ``tokens`` and ``embeddings``, float32 (batch, k, dim); ``attention``, float32 (batch, k, length).
        """

    def describe(self) -> str:
        """Which backend this is, for people."""

    def close(self) -> None:
        """Release what the session holds; it cannot run afterwards."""


def with_token_index(inputs: Arrays, k: int) -> dict[str, NDArray[Any]]:
    """Add the graph's own input that says which register tokens to compute: ``token_index``, int64 (k,)."""
    return {**inputs, TOKEN_INDEX: np.arange(k, dtype=np.int64)}


class FakeSession:
    """A session without a graph, for tests of everything above it.

    Token ``j`` of a row is a fixed direction that depends on the row's input and on j, so prefixes hold and rows
    do not depend on their batch.

    Args:
        dim: of tokens and embeddings.
        num_overlapping: how many tokens are pooled.
        on_run: called with the inputs and the k of every run.
    """

    def __init__(
        self, dim: int = 8, num_overlapping: int = 3, on_run: Callable[[Arrays, int], None] | None = None
    ) -> None:
        self._dim = dim
        self._num_overlapping = num_overlapping
        self._on_run = on_run
        self.closed = False

    def run(self, inputs: Arrays, k: int, outputs: Sequence[str] = OUTPUTS) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`."""
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
        """See `Session.describe`."""
        return "fake"

    def close(self) -> None:
        """See `Session.close`."""
        self.closed = True

    def _row(self, row: NDArray[Any], k: int) -> NDArray[np.float32]:
        seed = np.frombuffer(np.ascontiguousarray(row).tobytes().ljust(1), dtype=np.uint8).astype(np.uint64)
        mixed = int((seed * np.arange(1, len(seed) + 1, dtype=np.uint64)).sum() % (2**32))
        return np.stack([np.random.default_rng([mixed, j]).standard_normal(self._dim) for j in range(k)]).astype(
            np.float32
        )
