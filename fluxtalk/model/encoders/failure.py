"""An exception of a user's own code as a part of one sentence."""

from __future__ import annotations

from fluxtalk.errors import FluxTalkError, reason


def describe_error(error: Exception) -> str:
    """Describe an exception by type and message, without a full stop; a `FluxTalkError` by its message alone."""
    if isinstance(error, FluxTalkError):
        return str(error).rstrip(".")
    name = type(error).__name__
    return f"{name}: {reason(error)}" if str(error).strip() else name
