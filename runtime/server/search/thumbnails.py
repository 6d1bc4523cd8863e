"""Small pictures of image files."""

from __future__ import annotations

from pathlib import Path

from fluxtalk.errors import InputError
from fluxtalk.runtime.server.execution.decode_pool import DecodePool
from fluxtalk.runtime.server.http.errors import ApiError

MAX_FILE_BYTES = 64 << 20


async def thumbnail(pool: DecodePool, path: Path, side: int, deadline: float) -> tuple[bytes, str]:
    """Decode an image file, and encode it anew, so that nothing but pixels gets out.

    Args:
        pool: decodes the file.
        side: length of the longer side at most, in pixels; a smaller image keeps its size.
        deadline: time on the clock of `time.monotonic` by which it is of use.

    Returns:
        the file and its media type: JPEG, or PNG if JPEG would lose something.

    Raises:
        ApiError: 404: there is no such file; 422: it cannot be read (see `open_image_bytes`), or is too large; 429: too
            many files wait to be decoded.
    """
    data = await pool.in_thread(read_item, path)
    try:
        return await pool.thumbnail(data, side, deadline)
    except InputError:
        raise _unusable() from None


def read_item(path: Path) -> bytes:
    """Read the file of an item.

    Raises:
        ApiError: 404: there is no such file; 422: it is too large, or cannot be read.
    """
    try:
        if not path.is_file():
            raise ApiError(404, "The file of this item is not there any more.", "item_not_found")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _unusable()
        return path.read_bytes()
    except OSError:
        raise _unusable() from None


def _unusable() -> ApiError:
    return ApiError(422, "The file of this item cannot be shown.", "invalid_item")
