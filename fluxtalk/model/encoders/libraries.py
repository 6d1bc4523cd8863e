"""Import of the optional libraries that encoders come from."""

from __future__ import annotations

import importlib
from typing import Any

from fluxtalk.errors import UsageError

_EXTRAS = {"transformers": "hf", "huggingface_hub": "hf", "timm": "timm", "open_clip": "open-clip"}


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
