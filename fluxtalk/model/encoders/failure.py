"""What a user's own code raised, which may be anything, as a part of one sentence."""

from __future__ import annotations

from fluxtalk.errors import FluxTalkError, reason


def described(error: Exception) -> str:
    """An exception's type and what it says, without a full stop; one of ours speaks for itself."""
    if isinstance(error, FluxTalkError):
        return str(error).rstrip(".")
    name = type(error).__name__
    return f"{name}: {reason(error)}" if str(error).strip() else name
