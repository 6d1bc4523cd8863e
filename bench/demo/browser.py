"""Debian's Chromium without a screen, driven by Playwright: for the page's tests and its picture."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from fluxtalk.errors import BackendError

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def why_no_browser() -> str | None:
    """Reason why no browser can be started, in a few words; None if one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install playwright)"
    return None if shutil.which("chromium") else "chromium is not installed (apt-get install -y chromium)"


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A browser with an empty profile: Playwright's `Browser`.

    Raises:
        BackendError: it, or what drives it, is not installed.
    """
    missing = why_no_browser()
    if missing:
        raise BackendError(f"The page is looked at in a browser, and {missing}.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_ARGUMENTS)
        try:
            yield started
        finally:
            started.close()
