"""What a server offers: its model, modalities, outputs and limits. Dialects read requests against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxtalk.artifacts.bundle import Manifest
from fluxtalk.errors import UsageError, check_token_count
from fluxtalk.runtime.server.execution.requests import EmbedRequest, Item
from fluxtalk.runtime.server.http.errors import ApiError, bad_request
from fluxtalk.tokens import OUTPUT_KINDS


@dataclass(frozen=True)
class Catalog:
    """What is served. Never changes while a server runs."""

    model: str
    """The name under which clients ask for it: that of the bundle's folder."""
    revision: str
    """The bundle's hash."""
    created: int
    """Seconds since 1970."""
    precision: str
    kinds: dict[str, str]
    """Modality to what its raw items are: ``text``, ``image``, ``features``, ..."""
    manifest: Manifest
    max_items: int

    def require_model(self, name: object) -> None:
        """Refuse a request for another model; None is the only one there is.

        Raises:
            ApiError: 400 or 404.
        """
        if name is None or name == self.model:
            return
        if not isinstance(name, str):
            raise bad_request(f"model is a string; got {type(name).__name__}.", "model", "invalid_type")
        raise ApiError(
            404, f"The model {name[:80]!r} is not served here; {self.model!r} is.", "model_not_found", "model"
        )

    def default_modality(self) -> str:
        """Of items that do not name theirs: the only modality of texts, or the only one at all.

        Raises:
            ApiError: 400: there is no such modality.
        """
        texts = [modality for modality, kind in self.kinds.items() if kind == "text"]
        if len(texts) == 1:
            return texts[0]
        if len(self.kinds) == 1:
            return next(iter(self.kinds))
        raise bad_request(f"Name the modality: one of {', '.join(self.kinds)}.", "modality", "missing")

    def require_modality(self, name: object) -> str:
        """A modality by name.

        Raises:
            ApiError: 400: it is unknown.
        """
        if not isinstance(name, str) or name not in self.kinds:
            shown = repr(name[:80]) if isinstance(name, str) else type(name).__name__
            raise bad_request(f"modality is one of {', '.join(self.kinds)}; got {shown}.", "modality")
        return name

    def require_count(self, count: int) -> None:
        """Refuse more items than a request may have.

        Raises:
            ApiError: 400.
        """
        if count > self.max_items:
            raise bad_request(
                f"input holds {count:,} items, and one request takes at most {self.max_items:,}: send them in several.",
                "input",
                "too_many_items",
            )

    def request(self, items: Sequence[Item], k: Any = None, output: Any = None) -> EmbedRequest:
        """Check what was asked for, and make it the typed request.

        Args:
            k: register tokens; None takes all.
            output: one of `OUTPUT_KINDS`; None takes ``pooled``.

        Raises:
            ApiError: 400, with the field at fault.
        """
        if not items:
            raise bad_request("input holds nothing to embed; give at least one item.", "input", "empty")
        self.require_count(len(items))
        kind = "pooled" if output is None else output
        if not isinstance(kind, str) or kind not in OUTPUT_KINDS:
            shown = repr(kind[:80]) if isinstance(kind, str) else type(kind).__name__
            raise bad_request(f"output is one of {', '.join(OUTPUT_KINDS)}; got {shown}.", "output")
        try:
            count = self._tokens(k, kind)
        except UsageError as error:
            raise bad_request(str(error), "tokens") from None
        return EmbedRequest(items, count, kind)

    def space_id(self, output: str) -> str:
        """Which vectors compare with those of this output: the same for every k and precision."""
        return self.manifest.space_id(output)

    def _tokens(self, k: Any, output: str) -> int:
        total, overlapping = self.manifest.num_register_tokens, self.manifest.num_overlapping_tokens
        if k is not None and type(k) is not int:
            raise UsageError(f"tokens is an integer from 1 to {total}; got {type(k).__name__}.")
        count = check_token_count(k, total, "this bundle")
        if output == "complementary":
            if overlapping == total:
                raise UsageError("This bundle has no complementary tokens: all of its tokens are overlapping.")
            if count != total:
                raise UsageError(f"complementary tokens come last, so they need all {total} tokens; leave tokens out.")
        return count
