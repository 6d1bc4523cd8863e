"""An object whose pickle would run code when it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class UnsafePickle:
    """A stand-in for a stranger's pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))
