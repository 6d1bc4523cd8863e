"""A picture of the data set: some things in the styles of which pictures may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bench.icons.tables import Member, read_members
from fluxtalk.errors import DataError

_LABEL, _GAP, _CAPTION = 124, 6, 15


def choose(members: Sequence[Member], columns: int) -> tuple[list[str], dict[str, dict[str, Member]]]:
    """Choose things that the most styles draw, of pictures that may be shown.

    Returns:
        The styles of these pictures, by name; and for each thing its picture by style.
    """
    things: dict[str, dict[str, Member]] = {}
    for member in members:
        if member.shown:
            things.setdefault(member.thing, {}).setdefault(member.style, member)
    ranked = sorted(things, key=lambda thing: (-len(things[thing]), thing))[:columns]
    return sorted({style for thing in ranked for style in things[thing]}), {thing: things[thing] for thing in ranked}


def draw_sheet(root: Path, output: Path, columns: int, side: int) -> int:
    """Draw one row per style and one column per thing, and return the number of pictures.

    Raises:
        DataError: there is no data set in ``root``, or nothing in it may be shown.
    """
    styles, things = choose(read_members(root), columns)
    if not things:
        raise DataError(f"{root} has no pictures that may be shown; build it with sets whose license allows it.")
    step = side + _GAP
    sheet = Image.new("RGB", (_LABEL + len(things) * step, _CAPTION + len(styles) * step), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, style in enumerate(styles):
        draw.text((4, _CAPTION + row * step + side // 3), style, fill=(60, 60, 60), font=font)
    count = 0
    for column, (thing, by_style) in enumerate(things.items()):
        left = _LABEL + column * step
        draw.text((left, 1), thing[: step // 6], fill=(60, 60, 60), font=font)
        for row, style in enumerate(styles):
            if style in by_style:
                with Image.open(root / by_style[style].image) as opened:
                    icon = opened.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(icon, (left, _CAPTION + row * step), icon)
                count += 1
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128, dither=Image.Dither.NONE).save(output, optimize=True)
    return count
