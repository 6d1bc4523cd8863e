"""Texts that show something: a text of nothing but invisible characters is as empty as a blank one."""

from __future__ import annotations

import re

_CONTROLS_FORMATS_SPACES = (
    r"\x00-\x20\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb"
    r"\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"
)
"""Unicode's categories Cc, Cf, Zs, Zl and Zp, without the format characters that have a shape (Arabic number signs)."""
_BLANK_LETTERS = r"\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
"""Characters of other categories that show nothing: joiners, fillers, variation selectors, the blank of Braille."""
_VISIBLE = re.compile(f"[^{_CONTROLS_FORMATS_SPACES}{_BLANK_LETTERS}]")


def is_visible(text: str) -> bool:
    """Find a character that shows something. Reads no further than the first."""
    return _VISIBLE.search(text) is not None
