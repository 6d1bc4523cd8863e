"""The sets of drawings: which package ships each, under which license, and whether it may be shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """One pinned package of a registry."""

    registry: str
    """``npm`` or ``pypi``."""
    name: str
    version: str
    keep: str
    """Regular expression of the members that are unpacked, matched from the start of their path in the package."""

    @property
    def folder(self) -> str:
        """Name of the folder that it is unpacked to: ``npm-mdi-svg-7.4.47``."""
        return f"{self.registry}-{self.name.replace('@', '').replace('/', '-')}-{self.version}"


@dataclass(frozen=True)
class DrawingSet:
    """Drawings of one maker."""

    name: str
    package: Package
    license: str
    """License of the drawings, which may differ from the package's."""
    shown: bool
    """True if the license lets anyone show and commit the pictures (with the notice in NOTICE)."""
    credit: str


def _emoji(vendor: str) -> Package:
    keep = rf"(img/{vendor}/64/[0-9a-f-]+\.png|emoji\.json)$"
    return Package("npm", f"emoji-datasource-{vendor}", "16.0.0", keep)


EMOJI_TAGS = Package("npm", "emojibase-data", "17.0.0", r"en/data\.json$")
_MDI = Package("npm", "@mdi/svg", "7.4.47", r"(svg/[^/]+\.svg|meta\.json)$")
_TABLER = Package("npm", "@tabler/icons", "3.48.0", r"(icons/(outline|filled)/[^/]+\.svg|icons\.json)$")
_LUCIDE = Package("npm", "lucide-static", "1.62.0", r"(icons/[^/]+\.svg|tags\.json)$")
_FONT_AWESOME = Package(
    "pypi",
    "fontawesomefree",
    "6.6.0",
    r"fontawesomefree/static/fontawesomefree/(svgs/[^/]+/[^/]+\.svg|metadata/icon-families\.json)$",
)
_QTAWESOME = Package(
    "pypi", "qtawesome", "1.4.2", r"qtawesome/fonts/(materialdesignicons6|phosphor|remixicon)[^/]*\.(ttf|json)$"
)

_UNCLEAR = "no license that allows redistribution"
EMOJI_SETS = (
    DrawingSet("google", _emoji("google"), "Apache-2.0", True, "Noto Emoji, Google"),
    DrawingSet("twitter", _emoji("twitter"), "CC-BY-4.0", True, "Twemoji, Twitter and other contributors"),
    DrawingSet("apple", _emoji("apple"), _UNCLEAR, False, "Apple Inc."),
    DrawingSet("facebook", _emoji("facebook"), _UNCLEAR, False, "Facebook, Inc."),
)
NPM_SETS = (
    *EMOJI_SETS,
    DrawingSet("mdi", _MDI, "Apache-2.0", True, "Material Design Icons, Pictogrammers"),
    DrawingSet("tabler", _TABLER, "MIT", True, "Tabler Icons, Pawel Kuna"),
    DrawingSet(
        "lucide", _LUCIDE, "ISC", True, "Lucide, Lucide Icons and contributors; parts Feather (MIT), Cole Bemis"
    ),
)
PYPI_SETS = (
    DrawingSet("fontawesome", _FONT_AWESOME, "CC-BY-4.0", True, "Font Awesome Free, Fonticons, Inc."),
    DrawingSet("mdi", _QTAWESOME, "Apache-2.0", True, "Material Design Icons, Pictogrammers"),
    DrawingSet("phosphor", _QTAWESOME, "MIT", True, "Phosphor Icons"),
    DrawingSet("remixicon", _QTAWESOME, "Apache-2.0", True, "Remix Icon"),
)
