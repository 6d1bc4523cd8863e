"""A picture of the data set `glyphs`: some characters in each of the sixteen faces."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fluxtalk.console import option, sentence_errors
from fluxtalk.datasets import default_cache_dir, glyphs

_COLUMNS, _LABEL, _GAP = 24, 170, 2


@click.command()
@option("--output", required=True, type=click.Path(path_type=Path), help="The .png to write.")
@option("--cache_dir", help="Cache of renderings.  [default: ~/.cache/fluxtalk]")
@sentence_errors
def main(output: Path, cache_dir: str | None) -> None:
    """Draw one row per face, one column per character that all faces have."""
    rendered = glyphs.load_glyphs(default_cache_dir(cache_dir))
    codes, counts = np.unique(rendered.characters, return_counts=True)
    everywhere = codes[counts == len(glyphs.FACES)]
    chosen = everywhere[np.linspace(0, len(everywhere) - 1, _COLUMNS).astype(int)]
    step = glyphs.SIZE + _GAP
    sheet = Image.new("L", (_LABEL + _COLUMNS * step, len(glyphs.FACES) * step), 255)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for row, face in enumerate(glyphs.FACES):
        draw.text((4, row * step + 10), face.file.removesuffix(".ttf"), fill=60, font=font)
        for column, code in enumerate(chosen):
            here = (rendered.characters == code) & (rendered.faces == row)
            glyph = Image.fromarray(255 - rendered.images[here][0])
            sheet.paste(glyph, (_LABEL + column * step, row * step))
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output, optimize=True)
    click.echo(
        f"{output}: {len(glyphs.FACES)} faces, {_COLUMNS} of {len(codes):,} characters, "
        f"{len(rendered.images):,} glyphs in all"
    )


if __name__ == "__main__":
    main()
