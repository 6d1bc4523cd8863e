"""Proof that our text preprocessing gives the token ids that a model's own library gives."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from fluxtalk.errors import InputError, UsageError
from fluxtalk.preprocess import TextPreprocessor

_SHOWN_IDS = 8
_WORDS = "the quick brown fox, 3.14 times, jumps over the lazy dog's naïve café; "
PROBES: tuple[str, ...] = (
    "a",
    "a photo of a cat",
    "The Quick BROWN fox Jumps Over THE lazy Dog",
    "ALL CAPITALS, AND iPhone",
    "it's they're we'll I'd don't you've I'm o'clock",
    "Hello, world! (really?) [yes] {no} <maybe> \"quoted\" 'single' — dash – and … dots",
    "!?.,;:-_#%&*/\\@^~`|+=$ word",
    "snake_case camelCase kebab-case SCREAMING_CASE",
    "  leading, trailing and   inner   spaces  ",
    "tab\tnewline\nreturn\r\nvertical\x0bform\x0cfeed",
    "non\u00a0breaking, em\u2003quad, ideographic\u3000space, narrow\u202fspace",
    "zero\u200bwidth joiner\u200d non\u200cjoiner soft\u00adhyphen \ufeffmark",
    "control\x00characters\x01and\x07bells\x1funit\x7fdelete\x85next",
    "left\u200e to right\u200f and \u202dback\u202c",
    "café naïve Größe piñata Ångström",
    unicodedata.normalize("NFD", "café naïve Größe piñata Ångström"),
    "ﬁne ﬂight № ½ ² ㎏ Ⅳ ｆｕｌｌ ｗｉｄｔｈ",
    "İstanbul ıssız STRASSE straße ẞ",
    "ΟΔΥΣΣΕΥΣ σοφός Ελληνικά",
    "Привет, МИР! ёлка Ёлка",
    "שלום עולם",
    "السلام عليكم ١٢٣",
    "नमस्ते दुनिया १२३",
    "สวัสดีชาวโลก",
    "Xin chào thế giới, Việt Nam",
    "你好，世界！漢字、北京",
    "こんにちは世界 カタカナ ﾊﾝｶｸ",
    "안녕하세요 세계",
    unicodedata.normalize("NFD", "안녕하세요 세계"),
    "emoji 🙂 👩‍🚀 🏳️‍🌈 👍🏽 ❤️ ❤ 🇩🇪",
    "math ∑ᵢ xᵢ² ≤ ∞ ⇒ α·β ≠ γ",
    "0 1 12 123 1234 12345 1,234,567.89 1e-6 0x1F 007",
    "2026-11-29T12:34:56Z 50% $9.99 €5 #42 +49 30 123456",
    "https://www.example.com/path?query=a%20b&x=1#frag user@example.org",
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment",
    '{"key": [1, 2.5, null], "nested": {"a": "b"}}',
    "Tom &amp; Jerry &lt;b&gt; &quot;x&quot; &#39;y&#39; &eacute; &nbsp; AT&T",
    "▁underline ##wordpiece Ġbyte </w> @@",
    "“curly” ‘quotes’ «guillemets» „low“",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 250,
    _WORDS * 12,
    "begin " + _WORDS.upper() * 40 + "end",
)
"""Texts of several scripts, with what tokenizers differ on: case, accents, spaces, controls, digits, length."""

LONGEST_PROBE = 4096
"""Tokens that no probe reaches: one for each byte would be fewer."""


def prove_equal(
    preprocess: TextPreprocessor,
    library_ids: Callable[[str], Sequence[int]],
    name: str,
    more: Sequence[str] = (),
) -> None:
    """Compare the ids of `PROBES`, and of each after each prompt, with those of the library.

    Args:
        library_ids: the library's own ids of a text, with special tokens, truncation and any fixed-length padding.
        name: name of the tokenizer, for the error.
        more: texts to compare beside `PROBES`.

    Raises:
        UsageError: a text has other ids; it is the first.
    """
    nothing = list(library_ids(""))
    for choice in (preprocess, *map(preprocess.prompted, preprocess.prompts)):
        prompt = choice.prompt
        for probe in (*PROBES, *more):
            expected = list(library_ids(prompt + probe))
            try:
                found = choice.prepare(probe).tolist()
            except InputError:  # nothing is left of it but special tokens
                found = nothing
            if found != expected:
                raise UsageError(_difference(name, prompt + probe, found, expected))


def _difference(name: str, text: str, found: list[int], expected: list[int]) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(map(len, (found, expected)))
    )
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    return (
        f"The tokenizer {name} cannot be represented exactly: of the text {shown} its library makes "
        f"{_ids(expected, at)} and its tokenizer.json {_ids(found, at)}; save it as a tokenizer.json that gives the "
        "library's ids."
    )


def _ids(ids: list[int], at: int) -> str:
    """Show the ids around a position."""
    start = max(0, at - 2)
    shown = ", ".join(map(str, ids[start : start + _SHOWN_IDS]))
    return f"[{'..., ' * (start > 0)}{shown}{', ...' * (len(ids) > start + _SHOWN_IDS)}] ({len(ids)} ids)"
