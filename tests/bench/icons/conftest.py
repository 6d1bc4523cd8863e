"""A data set of a few drawings, built offline from packages that are already unpacked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.icons.build import Plan
from bench.icons.packages import RECORD
from bench.icons.sets import EMOJI_SETS, EMOJI_TAGS, NPM_SETS

EMOJI = {  # code points: label, tags
    "1F4CE": ("paperclip", ["clip", "paper", "office"]),
    "1F514": ("bell", ["sound"]),
    "2764-FE0F": ("red heart", ["love"]),
    "1F1F3-1F1F4": ("flag: Norway", ["NO"]),
    "1F1E7-1F1FB": ("flag: Bouvet Island", ["BV"]),
    "1F98A": ("fox", ["animal"]),
}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><circle cx="12" cy="12" r="{}"/></svg>'
TINY = Plan(source="npm", size=32, test=2, validation=1, subsets=(3,))


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """The folder of a data set whose packages are fetched: six emoji, five icons in two to three sets."""
    root = tmp_path / "icons"
    for s in NPM_SETS:
        write(root / "packages" / s.package.folder / RECORD, {"sha256": "0"})
    tags = [{"hexcode": code, "label": label, "tags": tags} for code, (label, tags) in EMOJI.items()]
    write(root / "packages" / EMOJI_TAGS.folder / RECORD, {"sha256": "0"})
    write(root / "packages" / EMOJI_TAGS.folder / "en" / "data.json", tags)
    for vendor, s in enumerate(EMOJI_SETS):
        folder = root / "packages" / s.package.folder
        write(folder / "emoji.json", [_entry(code) for code in EMOJI])
        (folder / "img" / s.name / "64").mkdir(parents=True)
        for number, code in enumerate(EMOJI):
            # Norway and its island have one flag.
            color = (40 * min(number, 3) if "1F1" in code else 40 * number, 60 * vendor, 90, 255)
            picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
            picture.paste(color, (8, 8, 56, 56))
            picture.save(folder / "img" / s.name / "64" / f"{code.lower()}.png")
    icons = {s.name: root / "packages" / s.package.folder for s in NPM_SETS}
    mdi = ["bell", "bell-outline", "paper-clip", "cog"]
    write(icons["mdi"] / "meta.json", [{"name": n, "aliases": [], "tags": ["Home / Office"]} for n in mdi])
    for number, name in enumerate(mdi):
        write(icons["mdi"] / "svg" / f"{name}.svg", SVG.format(number + 2))
    tabler = {
        "bell": {"category": "System", "tags": ["alarm", 7], "styles": {"outline": {}, "filled": {}}},
        "brand-github": {"category": "Brand", "tags": [], "styles": {"outline": {}}},
    }
    write(icons["tabler"] / "icons.json", tabler)
    for number, (name, style) in enumerate([("bell", "outline"), ("bell", "filled"), ("brand-github", "outline")]):
        write(icons["tabler"] / "icons" / style / f"{name}.svg", SVG.format(number + 6))
    write(icons["lucide"] / "tags.json", {"settings": ["gear"]})
    for number, name in enumerate(["github", "settings"]):
        write(icons["lucide"] / "icons" / f"{name}.svg", SVG.format(number + 9))
    # The old name of an icon, as lucide ships it.
    write(icons["lucide"] / "icons" / "preferences.svg", SVG.format(10))
    return root


def _entry(code: str) -> dict[str, Any]:
    drawn = {f"has_img_{s.name}": not (s.name == "facebook" and code == "1F98A") for s in EMOJI_SETS}
    common = {"name": "X", "unified": code, "image": f"{code.lower()}.png", "category": "Objects"}
    return {**common, **drawn, "skin_variations": {"1F3FB": {}} if code == "1F514" else {}}
