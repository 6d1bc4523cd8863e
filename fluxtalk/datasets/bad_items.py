"""The policy on items that cannot be used, of every source and command: `fail` or `skip`, up to a share, and a report.

Bad items never stop the encoding of the others. At its end, `fail` refuses and lists them; `skip` leaves them out,
unless they are more than the limit, and says so in every result. Both write all of them to a report::

    {"format": "fluxtalk.bad-items", "schema_version": 1, "data": "pairs.csv", "data_hash": "3f2a...", ...}
    {"item": "photos/5.png", "reason": "The image ...", "modality": "image", "split": "train", "row": 5, "id": "5"}
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxtalk.artifacts.json_files import read_text
from fluxtalk.artifacts.storage import StoredPath, write_file
from fluxtalk.config import StrictConfig, require
from fluxtalk.console import Function, option
from fluxtalk.errors import ArtifactError, UsageError

FORMAT = "fluxtalk.bad-items"
SCHEMA_VERSION = 1
FAIL, SKIP = "fail", "skip"
CHOICES = (FAIL, SKIP)
LIMIT = 0.01
"""Largest share of a modality's items that `skip` leaves out unless another is given."""
LISTED = 20
"""Largest number of bad items in a sentence; the report has all."""
ROW = "row"
"""What stands for the modality of a bad row of a table."""
_SHOWN_TEXT = 60
_MOST_BYTES = 4 << 30
"""Largest report: of millions of items, all may be bad."""


@dataclass(frozen=True)
class BadItemPolicy:
    """Policy about bad items.

    Raises:
        UsageError: the word or the limit is not one of those that are possible.
    """

    action: str = FAIL
    """`fail`: end after encoding, and list them; `skip`: leave them out."""
    limit: float = LIMIT
    """Largest share of a modality's items that `skip` leaves out: 0 to 1."""

    def __post_init__(self) -> None:
        require(self.action in CHOICES, f"--on-bad-item is {FAIL} or {SKIP}; got {self.action!r}.")
        require(0 <= self.limit <= 1, f"--bad-items-limit is a share from 0 to 1; got {self.limit}.")

    def refusal(self, bad: Sequence[BadItem], totals: Mapping[str, int], what: str, report: StoredPath) -> str | None:
        """Compose the sentence that refuses; None if the items may be left out, or there are none.

        Args:
            totals: modality to the number of all of its items.
            what: where they are from: ``The data set pairs.csv``.
            report: file that lists all of them.
        """
        if not bad:
            return None
        shares = {m: count / max(1, totals.get(m, 0)) for m, count in Counter(item.modality for item in bad).items()}
        most = max(shares, key=lambda modality: shares[modality])
        over = shares[most] > self.limit
        if self.action == SKIP and not over:
            return None
        limit = (
            f" {shares[most]:.1%} of {most} is more than the {self.limit:.1%} of --bad-items-limit, which has to be "
            "raised to leave them out."
            if over
            else ""
        )
        return (
            f"{what} has {len(bad)} of {sum(totals.values())} items that cannot be used: {abbreviated(bad)}; "
            f"{report} lists {'it' if len(bad) == 1 else 'all'}. Everything else is encoded and kept: repair or remove "
            f"{'it' if len(bad) == 1 else 'them'}, or leave {'it' if len(bad) == 1 else 'them'} out with "
            f"--on-bad-item skip.{limit}"
        )


@dataclass(frozen=True)
class BadItem(StrictConfig):
    """One item that cannot be used."""

    item: str
    """Path of its file, or its text."""
    reason: str
    modality: str
    """Modality; `ROW` of a whole row of a table."""
    split: str = ""
    row: int = 0
    """Row of the modality's items in the split; of a command that embeds, position among its items."""
    id: str = ""

    def line(self) -> str:
        """Name item and reason."""
        return self.reason if self.item in self.reason else f"{self.item} ({self.reason})"


def abbreviated(bad: Sequence[BadItem]) -> str:
    """List the first twenty and the number of the others; of several, without the advice that each would repeat."""
    if len(bad) == 1:
        return bad[0].line()
    more = f", and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    return "; ".join(dataclasses.replace(i, reason=_without_advice(i.reason)).line() for i in bad[:LISTED]) + more


def one_line(error: BaseException | str) -> str:
    """Write an error in one line, without a full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _without_advice(reason: str) -> str:
    """Cut a sentence before what it says is to be done."""
    kept, _, advice = reason.rpartition("; ")
    return reason if not kept or advice.startswith("got ") else kept


def shown_item(value: Any, otherwise: str) -> str:
    """Name a raw item: its path or the beginning of its text; else ``otherwise``."""
    if not isinstance(value, str | Path):
        return otherwise
    text = str(value)
    return text if isinstance(value, Path) or len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}..."


def write_report(path: StoredPath, data: str, data_hash: str, bad: Sequence[BadItem], **more: Any) -> None:
    """Write the report of a data set, or of a command's items.

    Args:
        data_hash: hash of the data set with its bad items; empty for items of a command.
    """
    head = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "data": data, "data_hash": data_hash, **more}
    lines = [head, *(dataclasses.asdict(item) for item in bad)]
    write_file(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_report(path: Path) -> tuple[str, tuple[BadItem, ...]]:
    """Read the hash of the data set, and its bad items.

    Raises:
        ArtifactError: the file is missing or not a report.
    """
    try:
        # Not `decode_json`: the name of a file may hold bytes that are not Unicode.
        head, *lines = [json.loads(line) for line in read_text(path, _MOST_BYTES).split("\n") if line]
        if head["format"] != FORMAT or head["schema_version"] != SCHEMA_VERSION:
            raise ValueError
        return str(head["data_hash"]), tuple(BadItem.from_dict(line) for line in lines)
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        raise ArtifactError(
            f"{path} is not a report of bad items that this FluxTalk wrote; restore it, or make it again."
        ) from None


def bad_item_options(group: str | None = None) -> Callable[[Function], Function]:
    """Add ``--on-bad-item`` and ``--bad-items-limit``, which a command takes as ``on_bad_item, bad_items_limit``."""
    import click

    def decorate(command: Function) -> Function:
        limited = option(
            "--bad-items-limit",
            group=group,
            default=LIMIT,
            show_default=True,
            type=float,
            help="Largest share of a modality's items that `skip` leaves out.",
        )(command)
        return option(
            "--on-bad-item",
            group=group,
            default=FAIL,
            show_default=True,
            type=click.Choice(CHOICES),
            help="End after encoding and list items that cannot be used, or leave them out.",
        )(limited)

    return decorate
