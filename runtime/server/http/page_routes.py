"""The page at `/`: files of this package, read once, and allowed to load nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/server.js": ("server.js", "text/javascript; charset=utf-8"),
    "/page/results.js": ("results.js", "text/javascript; charset=utf-8"),
    "/page/attention.js": ("attention.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path to file and media type. They hold nothing of a bundle or an index, so they need no key; the page asks for it."""
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """``/`` and what it loads."""
    folder = files("fluxtalk.runtime.server") / "page"
    return [
        Route(path, _file(folder.joinpath(name).read_bytes(), media_type))
        for path, (name, media_type) in PAGE_FILES.items()
    ]


def _file(content: bytes, media_type: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def answer(_request: Request) -> Response:
        # Starlette would add a charset to text, which is there already.
        return Response(content, headers={**_HEADERS, "content-type": media_type})

    return answer
