"""Images as they come: what is odd is read as people mean it, what is broken harms nobody else."""

from __future__ import annotations

import base64
import io
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fluxtalk.runtime import Embedder
from tests.runtime.server.conftest import Process, least, peak_mib, wait_for


def saved(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def pixels(height: int = 48, width: int = 40, channels: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels else (height, width)
    smooth = np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)
    return np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BOX))


def png(width: int, height: int, bits: int = 1, color: int = 0, rows: int | None = None) -> bytes:
    """A black PNG written by hand, as large as one likes; fewer ``rows`` than it says, if wanted."""
    channels = {0: 1, 2: 3, 6: 4}[color]
    row = bytes(1 + -(-width * bits * channels // 8))
    packer = zlib.compressobj(9)
    packed = [packer.compress(row) for _ in range(height if rows is None else rows)]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", b"".join(packed) + packer.flush()),
            chunk(b"IEND", b""),
        )
    )


def embed(client: httpx.Client, image: bytes, content_type: str = "image/png") -> httpx.Response:
    return client.post("/v1/embeddings", content=image, headers={"content-type": content_type})


def vector(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["data"][0]["embedding"], dtype=np.float32)


def odd_images() -> dict[str, tuple[bytes, np.ndarray]]:
    """A file of each odd kind, and the gray pixels that it shows."""
    gray, color = pixels(), pixels(channels=3)
    as_gray = np.asarray(Image.fromarray(color).convert("L"))
    palette = Image.fromarray(color).quantize(64)
    cmyk = Image.fromarray(np.dstack([color, np.zeros_like(gray)]), "CMYK")
    frames = [Image.fromarray(gray), Image.fromarray(255 - gray)]
    clear = Image.fromarray(np.dstack([color, gray]), "RGBA")
    white = Image.new("RGBA", clear.size, "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    return {
        "gray": (saved(Image.fromarray(gray)), gray),
        "color": (saved(Image.fromarray(color)), as_gray),
        "transparent": (saved(clear), np.asarray(Image.alpha_composite(white, clear).convert("RGB").convert("L"))),
        "16 bits": (saved(Image.fromarray(gray.astype(np.uint16) * 256 + 17)), gray),
        "palette": (saved(palette), np.asarray(palette.convert("RGB").convert("L"))),
        "CMYK": (saved(cmyk, "TIFF"), np.asarray(cmyk.convert("L"))),
        "two colors": (
            saved(Image.fromarray(gray > 127)),
            np.where(gray > 127, 255, 0).astype(np.uint8),
        ),
        "animated GIF": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), gray),
        "animated PNG": (saved(frames[0], save_all=True, append_images=frames[1:]), gray),
        "animated WebP": (
            saved(Image.fromarray(color), "WEBP", save_all=True, append_images=[frames[1]], lossless=True),
            as_gray,
        ),
        "turned": (saved(Image.fromarray(gray), exif=exif), np.rot90(gray, -1)),
        "one pixel": (saved(Image.fromarray(gray[:1, :1])), gray[:1, :1]),
    }


@pytest.mark.parametrize("name", odd_images())
def test_odd_images_are_read_as_they_look(client: httpx.Client, embedder: Embedder, name: str) -> None:
    file, shown = odd_images()[name]
    expected = embedder.embed("image", [np.ascontiguousarray(shown)])[0]
    assert np.abs(vector(embed(client, file)) - expected).max() <= 1e-6


def test_a_cmyk_jpeg(client: httpx.Client, embedder: Embedder) -> None:
    file = saved(Image.fromarray(np.dstack([pixels(channels=3), pixels()]), "CMYK"), "JPEG", quality=95)
    expected = embedder.embed("image", [np.asarray(Image.open(io.BytesIO(file)).convert("L"))])[0]
    assert np.abs(vector(embed(client, file, "image/jpeg")) - expected).max() <= 1e-6


def bad_images() -> dict[str, bytes]:
    png_file = saved(Image.fromarray(pixels(200, 200)))
    jpeg = saved(Image.fromarray(pixels(200, 200)), "JPEG")
    webp = saved(Image.fromarray(pixels(200, 200, 3)), "WEBP")
    gif = saved(Image.fromarray(pixels(200, 200)), "GIF")
    tiff = saved(Image.fromarray(pixels(200, 200)), "TIFF")
    return {
        "0 bytes": b"",
        "1 byte": b"\x89",
        "text": b"this is no image",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
        "ICO": saved(Image.fromarray(pixels(16, 16)), "ICO"),
        "noise": np.random.default_rng(0).bytes(5000),
        "truncated PNG": png_file[: len(png_file) // 2],
        "PNG header": png_file[:33],
        "truncated JPEG": jpeg[: len(jpeg) // 2],
        "JPEG header": jpeg[:200],
        "JPEG without end": jpeg[:-200],
        "truncated WebP": webp[: len(webp) // 2],
        "truncated GIF": gif[: len(gif) // 2],
        "truncated TIFF": tiff[: len(tiff) // 2],
        "changed PNG": png_file[:100] + bytes(b ^ 0x55 for b in png_file[100:200]) + png_file[200:],
        "bomb of 1 bit": png(13_000, 13_000),
        "bomb of 48 bits": png(13_000, 13_000, 16, 2, rows=0),
        "long side": png(60_000, 1),
        "GIF of 4 gigapixels": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "32 bits": saved(Image.fromarray(pixels().astype(np.float32)), "TIFF"),
    }


def test_the_bomb_is_small() -> None:
    assert len(png(13_000, 13_000)) < 30_000


@pytest.mark.parametrize("name", bad_images())
def test_a_bad_image_is_refused_at_once(client: httpx.Client, name: str) -> None:
    image = bad_images()[name]

    def refused() -> float:
        begin = time.monotonic()
        answer = embed(client, image)
        took = time.monotonic() - begin
        assert answer.status_code in (400, 413, 422), answer.text
        error = answer.json()["error"]
        assert error["message"].startswith("input 0: ")
        assert error["message"].endswith(".")
        assert error["param"] == "input[0]"
        return took

    assert least(refused, 2) < 2


def test_what_pillow_says_of_an_image_reaches_no_log(server: Process, client: httpx.Client) -> None:
    file = saved(Image.fromarray(pixels()), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x0e\x01\x02\0")
    with pytest.warns(UserWarning, match="EXIF"):
        Image.open(io.BytesIO(file)).getexif()
    assert embed(client, file, "image/jpeg").status_code == 200
    assert "EXIF" not in server.log.read_text()
    assert "Warning" not in server.log.read_text()


def test_a_wrong_type_is_named_by_its_content(client: httpx.Client, embedder: Embedder) -> None:
    file = saved(Image.fromarray(pixels()))
    expected = embedder.embed("image", [pixels()])[0]
    assert np.abs(vector(embed(client, file, "image/jpeg")) - expected).max() <= 1e-6


def test_one_bad_image_of_several_is_named(client: httpx.Client) -> None:
    good = base64.b64encode(saved(Image.fromarray(pixels()))).decode()
    bad = base64.b64encode(bad_images()["truncated JPEG"]).decode()
    answer = client.post("/v1/embeddings", json={"input": [{"image": good}, {"image": bad}, {"image": good}]})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "input[1]"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of another process is read from /proc")
@pytest.mark.alone
def test_nobody_else_notices(server: Process, embedder: Embedder) -> None:
    bad = list(bad_images().values())
    good = saved(Image.fromarray(pixels()))
    expected = embedder.embed("image", [good])[0]
    text = embedder.embed("text", ["omega"])[0]
    end = threading.Event()
    refused: list[int] = []
    before = peak_mib(server)

    def send_bad(start: int) -> None:
        with server.client() as client:
            turn = start
            while not end.is_set():
                refused.append(embed(client, bad[turn % len(bad)]).status_code)
                turn += 1

    threads = [threading.Thread(target=send_bad, args=(start,)) for start in (0, 7, 16)]
    for thread in threads:
        thread.start()
    try:
        with server.client() as client:

            def slowest_of_another() -> float:
                slowest = 0.0
                for _ in range(25):
                    begin = time.monotonic()
                    assert np.abs(vector(embed(client, good)) - expected).max() <= 1e-6
                    found = vector(client.post("/v1/embeddings", json={"input": "omega"}))
                    assert np.abs(found - text).max() <= 1e-6
                    slowest = max(slowest, time.monotonic() - begin)
                return slowest

            wait_for(lambda: len(refused) > len(bad))
            assert least(slowest_of_another, 1.5) < 1.5
            assert client.get("/readyz").status_code == 200
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert set(refused) <= {400, 413, 422}
    # A bomb that was decoded would be 169 million pixels.
    assert peak_mib(server) - before < 128
