"""Import of the optional libraries that encoders come from."""

from __future__ import annotations

import importlib
from typing import Any

from fluxtalk.errors import UsageError

LIBRARIES = ("hf", "timm", "open_clip", "st")
"""Prefixes of sources that other libraries keep."""
_EXTRAS = {"transformers": "hf", "huggingface_hub": "hf", "timm": "timm", "open_clip": "open-clip"}


def is_library_source(source: str) -> bool:
    """Return whether a source names an encoder of another library."""
    return source.partition(":")[0] in LIBRARIES and ":" in source


def import_library(module: str, source: str) -> Any:
    """Import a library, or say how to get it.

    Args:
        module: ``transformers``, ``timm`` or ``open_clip``.
        source: the encoder's source that needs it, for the sentence.

    Raises:
        UsageError: it is not installed, or does not work here.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, "torchvision"):
            raise
        extra = _EXTRAS[module]
        raise UsageError(
            f"The encoder {source} needs {error.name}, which is not installed; pip install 'fluxtalk[{extra}]'."
        ) from None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise UsageError(
            f"The encoder {source} needs a torchvision built for the installed torch ({error}); "
            "install both from the same index."
        ) from None
