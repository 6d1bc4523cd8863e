"""Data sets of paired items, torch-free: the built-in `glyphs` and tables of pairs."""

from __future__ import annotations

from pathlib import Path

from fluxtalk.datasets import glyphs, table
from fluxtalk.datasets.pairs import SPLIT_NAMES, Items, PairDataset, Split
from fluxtalk.errors import UsageError

__all__ = ["SPLIT_NAMES", "Items", "PairDataset", "Split", "default_cache_dir", "load_dataset"]


def load_dataset(name: str, cache_dir: Path) -> PairDataset:
    """Read the data set that ``--data`` names.

    Args:
        name: ``glyphs``, or the path of a ``.csv`` table of pairs.
        cache_dir: where renderings are kept.

    Raises:
        UsageError: the name is neither.
        DataError: the data set cannot be used.
    """
    if name == "glyphs":
        return glyphs.load(cache_dir)
    if name.endswith(".csv"):
        return table.load(Path(name))
    raise UsageError(f"--data is glyphs or the path of a .csv table of pairs; got {name!r}.")


def default_cache_dir(option: str | None) -> Path:
    """The folder for renderings and features: the option, else ``~/.cache/fluxtalk``."""
    return Path(option) if option else Path.home() / ".cache" / "fluxtalk"
