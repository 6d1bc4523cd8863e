"""Raw items from a command line: texts and paths, a list in a file, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fluxtalk.errors import InputError, UsageError

SUFFIXES = {
    "image": frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")),
    "audio": frozenset((".wav", ".flac", ".ogg")),
    "features": frozenset((".npy",)),
}


def gather_items(kind: str, arguments: Sequence[str], list_file: Path | None) -> list[str]:
    """The items that a command was given.

    Args:
        kind: of the modality's preprocessing: ``text``, ``image``, ``audio`` or ``features``.
        arguments: texts, or paths; a folder stands for the files of that kind in it, by name.
        list_file: a UTF-8 file with one more item per line; blank lines are skipped.

    Raises:
        UsageError: there is no item at all.
        InputError: the list cannot be read, or a folder has no file of that kind.
    """
    items: list[str] = []
    for argument in arguments:
        items += [argument] if kind == "text" else _expand(kind, Path(argument))
    if list_file is not None:
        try:
            lines = list_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"The list {list_file} cannot be read ({error}); give a UTF-8 file with one item per line."
            ) from None
        items += [line.strip() for line in lines if line.strip()]
    if not items:
        raise UsageError("There is nothing to embed: give items, or a list with --input.")
    return items


def _expand(kind: str, path: Path) -> list[str]:
    if not path.is_dir():
        return [str(path)]
    found = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES[kind])
    if not found:
        raise InputError(f"The folder {path} has no {kind} file ({', '.join(sorted(SUFFIXES[kind]))}).")
    return found
