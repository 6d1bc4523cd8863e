"""Milliseconds to the answer of one small JPEG over HTTP, of one client.

``python -m bench.server.small_images --bundle BUNDLE``: starts `fluxtalk serve` and sends a JPEG of 224 x 224 pixels
again and again, as a file alone. Run it on two commits in turn (A, B, A, B), and compare within one such run: what a
small healthy image pays for the safety of decoding is the difference.
"""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import click
import numpy as np
from PIL import Image

from bench.server.client import Client, post
from bench.server.load import closed_loop
from bench.server.process import ServerProcess, serving, wait_until_verified
from bench.server.requests import PATH

_WARM_S = 1.0


@click.command()
@click.option("--bundle", default="runs/demo/bundle", type=click.Path(path_type=Path), show_default=True)
@click.option("--side", default=224, show_default=True, help="Pixels of a side.")
@click.option("--format", "format_", default="JPEG", show_default=True, help="Format, as Pillow calls it.")
@click.option("--seconds", default=8.0, show_default=True, help="Seconds of load.")
def main(bundle: Path, side: int, format_: str, seconds: float) -> None:
    """Time small images."""
    with serving(bundle) as server:
        wait_until_verified(server.url)
        click.echo(asyncio.run(_measured(server, small_image(side, format_), seconds)))


def small_image(side: int, format_: str) -> bytes:
    """Make a photograph-like file: smooth colors with a little noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, format_)
    return file.getvalue()


async def _measured(server: ServerProcess, file: bytes, seconds: float) -> str:
    request = post(PATH, file, "image/jpeg")
    async with Client(server.url) as client:
        await closed_loop(client, [request], 1, _WARM_S)
        load = await closed_loop(client, [request], 1, seconds)
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(load.statuses.items()))
    return (
        f"{len(file)} bytes: p50 {load.percentile_ms(50):.3f} ms, p90 {load.percentile_ms(90):.3f} ms, "
        f"least {load.percentile_ms(0):.3f} ms, {statuses}"
    )


if __name__ == "__main__":
    main()
