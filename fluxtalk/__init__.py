"""FluxTalk: align frozen encoders with a few ordered register tokens, and serve the result.

``import fluxtalk`` is cheap and torch-free; the names below load what they need when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluxtalk.model.head.registers import RegisterTokenModule
    from fluxtalk.model.head.token_head import RegisterOutputs
    from fluxtalk.model.losses.register_loss import RegisterTokenLoss
    from fluxtalk.runtime.embedder import load

__all__ = ["RegisterOutputs", "RegisterTokenLoss", "RegisterTokenModule", "__version__", "load"]
__version__ = "0.1.0"

_HOMES = {
    "RegisterOutputs": "fluxtalk.model.head.token_head",
    "RegisterTokenLoss": "fluxtalk.model.losses.register_loss",
    "RegisterTokenModule": "fluxtalk.model.head.registers",
    "load": "fluxtalk.runtime.embedder",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fluxtalk' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
