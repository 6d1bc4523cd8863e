"""Names of drawings in natural form, and the key under which two names are one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

_TAGS_SHOWN = 8


def natural_name(identifier: str, siblings: Collection[str] = (), endings: Sequence[str] = ()) -> tuple[str, str]:
    """Split an icon's identifier into what it shows and how it is drawn.

    ``account-badge-outline`` is an ``account badge``, drawn as ``outline``; ``brand-github`` is a ``github logo``.

    Args:
        identifier: name with hyphens.
        siblings: all identifiers of the set. ``trash-2`` is another ``trash`` only if there is a ``trash`` and no
            ``trash-4``, so that ``dice-2`` stays itself.
        endings: words, at the end of an identifier of this set, that name its style.

    Returns:
        The natural name, and the ending (empty if it has none).
    """
    parts = identifier.split("-")
    style = ""
    if len(parts) > 1 and parts[-1] in endings:
        style = parts.pop()
    if len(parts) > 1 and parts[-1] == "variant":
        parts.pop()
    base = "-".join(parts[:-1])
    if parts[-1] in ("2", "3") and base in siblings and f"{base}-4" not in siblings:
        parts.pop()
    if parts[0] == "brand" and len(parts) > 1:
        parts = [*parts[1:], "logo"]
    return " ".join(parts), style


def name_key(name: str) -> str:
    """Letters, digits and signs of a name: ``light bulb``, ``Light-Bulb`` and ``lightbulb`` have one key.

    A word ``logo`` at the end does not count, because only some sets say it.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(c))
    words = re.sub(r"""[\s_\-–—.,:;/&'"’‘“”()!?]+""", " ", plain).split()
    if len(words) > 1 and words[-1] == "logo" and len(words[-2]) > 1:
        words.pop()
    return "".join(words) or plain.strip()


def clean_tags(name: str, tags: Iterable[object]) -> tuple[str, ...]:
    """Make at most eight different tags that say something which the name does not."""
    words = set(name.casefold().split())
    kept: dict[str, None] = {}
    for tag in tags:
        text = " ".join(str(tag).replace("-", " ").replace("_", " ").split())
        if text and not set(text.casefold().split()) <= words:
            kept.setdefault(text.casefold())
    return tuple(kept)[:_TAGS_SHOWN]


def with_tags(name: str, tags: Sequence[str]) -> str:
    """Spell a caption of name and tags: ``heart: love, like``."""
    return f"{name}: {', '.join(tags)}"
