"""What a caller of `fluxtalk.train.fit` may hear of a run while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxtalk.model.head.token_head import TokenHead


class Callback:
    """Does nothing; override what you need. Called in the first process only.

    What it raises ends the run, with the last checkpoint left as it is.
    """

    def on_step(self, step: int, losses: Mapping[str, float]) -> None:
        """After optimizer step ``step`` (from 1), with the terms of its loss."""

    def on_validation(self, step: int, scores: Mapping[str, Any], head: TokenHead) -> None:
        """After a validation, with its scores (`fluxtalk.scoring.retrieval`) and its head."""


class Callbacks(Callback):
    """Several as one, in their order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)

    def __bool__(self) -> bool:
        """Whether there are any: reading a loss makes a GPU wait."""
        return bool(self._callbacks)

    def on_step(self, step: int, losses: Mapping[str, float]) -> None:
        """See `Callback.on_step`."""
        for callback in self._callbacks:
            callback.on_step(step, losses)

    def on_validation(self, step: int, scores: Mapping[str, Any], head: TokenHead) -> None:
        """See `Callback.on_validation`."""
        for callback in self._callbacks:
            callback.on_validation(step, scores, head)
