"""Drawings of every set, read from the unpacked packages: a name, tags, and the file or glyph that shows it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.icons.names import clean_tags, natural_name
from bench.icons.sets import EMOJI_SETS, EMOJI_TAGS, DrawingSet


@dataclass(frozen=True)
class Drawing:
    """One drawing, not rendered yet."""

    set: DrawingSet
    style: str
    """Way of drawing: the set, and within it outline or filled. Drawings of one thing differ in style."""
    name: str
    tags: tuple[str, ...]
    source: Path
    """A .png, a .svg, or the .ttf that holds `glyph`."""
    stem: str
    """Name of its picture, unique within the style."""
    code_point: str = ""
    """Unicode code points of an emoji, without variation selectors; empty for an icon."""
    glyph: str = ""
    """Character of a font; empty for files."""


LeftOut = Counter[str]
"""Reason to number of drawings."""


def read_drawings(drawing_set: DrawingSet, folders: Mapping[str, Path], left_out: LeftOut) -> list[Drawing]:
    """Read all drawings of a set.

    Args:
        folders: `Package.folder` to where it is unpacked; for emoji, the tags' package too.
        left_out: counts, by reason, of what is not taken are added to it.
    """
    folder = folders[drawing_set.package.folder]
    if drawing_set in EMOJI_SETS:
        return list(_emoji(drawing_set, folder, folders[EMOJI_TAGS.folder], left_out))
    readers: dict[str, Callable[[DrawingSet, Path], Iterator[Drawing]]] = {
        "tabler": _tabler,
        "lucide": _lucide,
        "fontawesome": _font_awesome,
    }
    if drawing_set.package.registry == "npm":
        readers["mdi"] = _mdi
    return list(readers.get(drawing_set.name, _font)(drawing_set, folder))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def code_point(unified: str) -> str:
    """Code points of an emoji without the variation selector: ``2764-FE0F`` and ``2764`` are one emoji."""
    return "-".join(part for part in unified.upper().split("-") if part != "FE0F")


def _emoji(drawing_set: DrawingSet, folder: Path, tags_folder: Path, left_out: LeftOut) -> Iterator[Drawing]:
    known = {code_point(entry["hexcode"]): entry for entry in _json(tags_folder / "en" / "data.json")}
    for entry in _json(folder / "emoji.json"):
        left_out["emoji: skin tones of an emoji that is in without"] += len(entry.get("skin_variations", ()))
        source = folder / "img" / drawing_set.name / "64" / entry["image"]
        if entry["category"] == "Component":
            left_out["emoji: swatches of skin tones"] += 1
        elif not entry[f"has_img_{drawing_set.name}"] or not source.is_file():
            left_out[f"emoji: not drawn by {drawing_set.name}"] += 1
        else:
            code = code_point(entry["unified"])
            label = known.get(code, {}).get("label") or entry["name"].lower()
            name = re.sub(r"^flag: ", "flag of ", re.sub(r"^keycap: ", "keycap ", label))
            tags = clean_tags(name, known.get(code, {}).get("tags", ()))
            yield Drawing(drawing_set, drawing_set.name, name, tags, source, source.stem, code)


def _mdi(drawing_set: DrawingSet, folder: Path) -> Iterator[Drawing]:
    entries = _json(folder / "meta.json")
    identifiers = {entry["name"] for entry in entries}
    for entry in entries:
        name, style = natural_name(entry["name"], identifiers, ("outline",))
        themes = [part for tag in entry["tags"] for part in re.split(r" [/+] ", tag.lower())]
        aliases = [natural_name(alias, (), ("outline",))[0] for alias in entry["aliases"]]
        tags = clean_tags(name, [*aliases, *themes])
        source = folder / "svg" / f"{entry['name']}.svg"
        yield Drawing(drawing_set, "mdi-outline" if style else "mdi", name, tags, source, entry["name"])


def _tabler(drawing_set: DrawingSet, folder: Path) -> Iterator[Drawing]:
    entries = _json(folder / "icons.json")
    for identifier, entry in entries.items():
        name, _ = natural_name(identifier, entries)
        tags = clean_tags(name, [*entry["tags"], entry["category"]])
        for style in entry["styles"]:
            source = folder / "icons" / style / f"{identifier}.svg"
            yield Drawing(drawing_set, f"tabler-{style}", name, tags, source, identifier)


def _lucide(drawing_set: DrawingSet, folder: Path) -> Iterator[Drawing]:
    tags_of = _json(folder / "tags.json")
    sources = sorted((folder / "icons").glob("*.svg"))
    identifiers = {source.stem for source in sources}
    for source in sources:
        name, _ = natural_name(source.stem, identifiers)
        yield Drawing(drawing_set, "lucide", name, clean_tags(name, tags_of.get(source.stem, ())), source, source.stem)


def _font_awesome(drawing_set: DrawingSet, folder: Path) -> Iterator[Drawing]:
    root = folder / "fontawesomefree" / "static" / "fontawesomefree"
    entries = _json(root / "metadata" / "icon-families.json")
    for source in sorted((root / "svgs").rglob("*.svg")):
        entry = entries.get(source.stem, {})
        brand = source.parent.name == "brands"
        name = natural_name(f"brand-{source.stem}" if brand else source.stem)[0]
        tags = clean_tags(name, entry.get("search", {}).get("terms", ()))
        yield Drawing(drawing_set, f"fontawesome-{source.parent.name}", name, tags, source, source.stem)


_FONTS = {
    "mdi": ("materialdesignicons6", ("outline",)),
    "phosphor": ("phosphor", ("bold", "fill", "light", "thin")),
    "remixicon": ("remixicon", ("fill", "line")),
}
"""Set to the beginning of its font's file name, and the endings of identifiers that name a style."""


def _font(drawing_set: DrawingSet, folder: Path) -> Iterator[Drawing]:
    beginning, endings = _FONTS[drawing_set.name]
    fonts = folder / "qtawesome" / "fonts"
    font, charmap = next(fonts.glob(f"{beginning}*.ttf")), next(fonts.glob(f"{beginning}*charmap*.json"))
    characters = _json(charmap)
    for identifier, character in sorted(characters.items()):
        name, ending = natural_name(identifier, characters, endings)
        style = f"{drawing_set.name}-{ending}" if ending else drawing_set.name
        yield Drawing(drawing_set, style, name, (), font, identifier, "", chr(int(character, 16)))
