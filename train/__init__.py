"""Training of register tokens (stage 2), and what belongs to it.

In: a stage 1 checkpoint, a data set and options. Out: a run's folder: checkpoints, log, metrics, results.

`fit` is `fluxtalk-train` from Python; it loads torch when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluxtalk.train.config import TrainConfig
    from fluxtalk.train.loop.train_state import Callback
    from fluxtalk.train.run import FitResult, fit

__all__ = ["Callback", "FitResult", "TrainConfig", "fit"]


def __getattr__(name: str) -> Any:
    import importlib

    homes = {"Callback": "loop.train_state", "FitResult": "run", "TrainConfig": "config", "fit": "run"}
    if name not in homes:
        raise AttributeError(f"module 'fluxtalk.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fluxtalk.train.{homes[name]}"), name)
