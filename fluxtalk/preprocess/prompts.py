"""Prompts: the words that an encoder was trained to see before a text, chosen by name or by the text's role.

Queries and documents get different ones from models that search; most models have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxtalk.errors import UsageError
from fluxtalk.preprocess.base import Preprocessor
from fluxtalk.preprocess.text import TextPreprocessor

QUERY, DOCUMENT = "query", "document"
ROLES: Mapping[str, tuple[str, ...]] = {QUERY: (QUERY,), DOCUMENT: (DOCUMENT, "passage", "corpus")}
"""Role of a text to the names of its prompt, of which the first that exists is used, as sentence-transformers does."""


@dataclass(frozen=True)
class Prompting:
    """Choice of a prompt.

    Raises:
        UsageError: the role is unknown, or more than one of the three is given.
    """

    role: str | None = None
    """``query`` or ``document``. Changes nothing where there is no prompt for it: then the default prompt, or none."""
    name: str | None = None
    """Name of a prompt."""
    words: str | None = None
    """The prompt itself, whatever the bundle has; the empty string is no prompt, not even the default one."""

    def __post_init__(self) -> None:
        if self.role is not None and self.role not in ROLES:
            raise UsageError(f"A role is {' or '.join(ROLES)}; got {self.role!r}.")
        if self.role is not None and self.name is not None:
            raise UsageError(f"A role chooses a prompt, and so does its name; got role {self.role} and {self.name!r}.")
        if self.words is not None and not (self.role is None and self.name is None):
            chosen = "its name" if self.role is None else "a role"
            raise UsageError(f"A prompt is given in words or chosen by {chosen}; got both.")

    def apply(self, preprocess: Preprocessor) -> Preprocessor:
        """Choose the prompt of a modality.

        Returns:
            ``preprocess`` itself, or for texts one that puts the chosen prompt before each.

        Raises:
            UsageError: there is no prompt of that name.
            InputError: the words alone are as long as a text may be.
        """
        name = self.prompt_name(preprocess.prompts if isinstance(preprocess, TextPreprocessor) else {})
        if not isinstance(preprocess, TextPreprocessor):
            return preprocess
        if self.words is not None:
            return preprocess.prompted_with(self.words)
        return preprocess if name is None else preprocess.prompted(name)

    def prompt_name(self, prompts: Mapping[str, str]) -> str | None:
        """Find the name of the chosen prompt; None is the default.

        Raises:
            UsageError: there is no prompt of that name.
        """
        if self.name is None:
            return next((name for name in ROLES.get(self.role or "", ()) if name in prompts), None)
        if self.name not in prompts:
            raise UsageError(f"{described(prompts)}; got {self.name[:80]!r}.")
        return self.name


DEFAULT = Prompting()
"""Nothing said: the default prompt, which training used, or none."""


def described(prompts: Mapping[str, Any]) -> str:
    """Begin a sentence that lists the prompts that exist."""
    return f"The prompts are {', '.join(prompts)}" if prompts else "There are no prompts here"
