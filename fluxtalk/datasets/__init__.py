"""Data sets of paired items, torch-free: the built-in `glyphs`, tables, shards, folders of precomputed features.

In: a name as ``--data`` takes it. Out: a `PairDataset`: splits of identified items per modality, with a content hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fluxtalk.datasets import features_folder, glyphs
from fluxtalk.datasets.data_name import GLYPHS, parse_data_name
from fluxtalk.datasets.pairs import SPLIT_NAMES, Items, PairDataset, Split
from fluxtalk.datasets.shards import shards
from fluxtalk.datasets.tables import table
from fluxtalk.errors import UsageError

__all__ = ["SPLIT_NAMES", "Items", "PairDataset", "Split", "default_cache_dir", "load_dataset"]


def load_dataset(name: str, cache_dir: Path, kinds: Mapping[str, str] | None = None) -> PairDataset:
    """Read the data set that ``--data`` names.

    Args:
        name: ``glyphs``; a table of pairs (``.csv``, ``.jsonl``, ``.parquet``) or WebDataset shards (``.tar``, with
            braces for several), each with or without a query that maps modalities; or a folder of features.
        cache_dir: folder of renderings.
        kinds: modalities that are used, to the kind of their preprocessing (`Stage1.kinds`). In a table, these alone
            link rows, and all but ``text`` hold paths. None uses every column, and takes those that look like paths
            as paths: give the same to every reader of one table, because ids and splits depend on it.

    Raises:
        UsageError: the name is not one of these, or its query is malformed.
        BackendError: a library that reads the format is missing.
        DataError: the data set cannot be used.
    """
    if name == GLYPHS:
        return glyphs.load(cache_dir)
    parsed = parse_data_name(name)
    if parsed is not None:
        return shards.load(parsed) if parsed.suffix == ".tar" else table.load(parsed, kinds)
    if name and Path(name).is_dir():
        return features_folder.load(name)
    raise UsageError(
        "--data is glyphs, a table of pairs (pairs.csv, .jsonl or .parquet; pairs.csv?image=COLUMN&text=COLUMN), "
        "WebDataset shards (shards-{000..099}.tar?image=jpg;png&text=txt) or an existing folder of features "
        f"(FOLDER/MODALITY/ID.npy or FOLDER/MODALITY.safetensors); got {name!r}."
    )


def default_cache_dir(option: str | None) -> Path:
    """The folder for renderings and features: the option, else ``~/.cache/fluxtalk``."""
    return Path(option) if option else Path.home() / ".cache" / "fluxtalk"
