"""URLs and names of hosts as a request and the settings write them; nothing here connects."""

from __future__ import annotations

import re

from fluxtalk.errors import UsageError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(value: object) -> bool:
    """True if an item is a URL, and not a file in base64 or a ``data:`` URL."""
    return isinstance(value, str) and _URL.match(value[:32]) is not None


def host_name(host: str) -> str:
    """Normalize a host's name, as URLs are compared with it.

    Raises:
        UsageError: it is not the name of a host.
    """
    name = host.lower().rstrip(".")
    if not re.fullmatch(r"[a-z0-9.-]+", name):
        raise UsageError(f"--allow-url takes a host's name, such as images.example.org; got {host!r}.")
    return name
