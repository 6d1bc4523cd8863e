"""The picture of the server's page.

``python -m bench.demo.page BUNDLE --index INDEX --serve-items DIR -o docs/images/page.png``
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bench.demo.browser import browser
from fluxtalk.artifacts.files import atomic_file
from fluxtalk.console import debug_option, sentence_errors
from fluxtalk.errors import BackendError

_SERVE = "from fluxtalk.runtime.server.cli import serve; serve()"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--index", "indexes", multiple=True, required=True, type=click.Path(path_type=Path))
@click.option("--serve-items", "folders", multiple=True, type=click.Path(path_type=Path), help="As for serving.")
@click.option("--text", default="rightwards two-headed arrow with tail", show_default=True, help="The query.")
@click.option("--image", type=click.Path(path_type=Path), help="An image file to query instead of the text.")
@click.option("-k", "--k", type=int, help="Tokens to set the slider to.  [default: all]")
@click.option("--width", default=1280, show_default=True)
@click.option("--scheme", default="light", show_default=True, type=click.Choice(("light", "dark")))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .png to write.")
@debug_option
@sentence_errors
def main(
    bundle: Path,
    indexes: tuple[Path, ...],
    folders: tuple[Path, ...],
    text: str,
    image: Path | None,
    k: int | None,
    width: int,
    scheme: str,
    output: Path,
) -> None:
    """Serve BUNDLE, ask the page for something, and write what it looks like."""
    with _serving(bundle, indexes, folders) as url, browser() as started:
        page = started.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
        page.goto(url)
        page.locator("#main").wait_for()
        # The page shows medians; the first times of a process are none to show.
        for _ in range(10):
            if image is None:
                page.locator("#text").fill("")
                page.locator("#empty").wait_for()
                page.locator("#text").fill(text)
            else:
                page.locator("#file").set_input_files(image)
                page.locator("#maps figure").first.wait_for()
            _settle(page)
        if k is not None:
            page.locator("#k").fill(str(k))
            page.locator("#facts", has_text=f"k = {k} ").wait_for()
        page.locator("header").click()
        page.wait_for_load_state("networkidle")
        with atomic_file(output) as temporary:
            temporary.write_bytes(page.screenshot(full_page=True))
    click.echo(f"{output}: {width} pixels wide")


def _settle(page: Any) -> None:
    page.locator('#results[aria-busy="false"] li').first.wait_for()
    page.wait_for_load_state("networkidle")


@contextlib.contextmanager
def _serving(bundle: Path, indexes: tuple[Path, ...], folders: tuple[Path, ...]) -> Iterator[str]:
    options = [part for index in indexes for part in ("--index", str(index))]
    options += [part for folder in folders for part in ("--serve-items", str(folder))]
    command = [sys.executable, "-c", _SERVE, str(bundle), "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        if not line.startswith("serving "):
            raise BackendError("The server did not start; its message is above.")
        yield line.split()[-1]
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


if __name__ == "__main__":
    main()
