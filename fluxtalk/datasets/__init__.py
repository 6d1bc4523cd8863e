"""Data sets of paired items, torch-free: `glyphs`, tables, shards, Hugging Face's, folders of precomputed features.

In: a name as ``--data`` takes it. Out: a `PairDataset`: splits of identified items per modality, with a content hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fluxtalk.artifacts.files import user_cache_dir
from fluxtalk.datasets import features_folder, glyphs, hugging_face
from fluxtalk.datasets.bad_items import read_report
from fluxtalk.datasets.data_name import GLYPHS, HUGGING_FACE, parse_data_name
from fluxtalk.datasets.left_out import leave_out
from fluxtalk.datasets.pairs import SPLIT_NAMES, Items, PairDataset, Split
from fluxtalk.datasets.reporting import is_folder
from fluxtalk.datasets.shards import shards
from fluxtalk.datasets.tables import table
from fluxtalk.errors import UsageError

__all__ = ["SPLIT_NAMES", "Items", "PairDataset", "Split", "default_cache_dir", "load_dataset", "load_recorded"]


def load_dataset(
    name: str, cache_dir: Path, kinds: Mapping[str, str] | None = None, tolerated: float = 0.0
) -> PairDataset:
    """Read the data set that ``--data`` names.

    Args:
        name: ``glyphs``; a table of pairs (``.csv``, ``.jsonl``, ``.parquet``) or WebDataset shards (``.tar``, with
            braces for several), or a folder that the library `datasets` saved (``hfds:DIR``), each with or without a
            query that maps modalities; or a folder of features.
        cache_dir: folder of renderings.
        kinds: modalities that are used, to the kind of their preprocessing (`Stage1.kinds`). In a table, these alone
            link rows, and all but ``text`` hold paths. None uses every column, and takes those that look like paths
            as paths: give the same to every reader of one table, because ids and splits depend on it.
        tolerated: largest share of missing files, malformed rows or unreadable members that reading passes on: the
            encoding of the items finds them again, and `fluxtalk.datasets.bad_items` says what is done about them.

    Raises:
        UsageError: the name is not one of these, or its query is malformed.
        BackendError: a library that reads the format is missing.
        DataError: the data set cannot be used.
    """
    if name == GLYPHS:
        return glyphs.load(cache_dir)
    parsed = parse_data_name(name)
    if parsed is not None:
        if parsed.suffix == HUGGING_FACE:
            return hugging_face.load(parsed, kinds)
        return shards.load(parsed, tolerated) if parsed.suffix == ".tar" else table.load(parsed, kinds, tolerated)
    if name and is_folder(Path(name)):
        return features_folder.load(name, tolerated)
    raise UsageError(
        "--data is glyphs, a table of pairs (pairs.csv, .jsonl or .parquet; pairs.csv?image=COLUMN&text=COLUMN), "
        "WebDataset shards (shards-{000..099}.tar?image=jpg;png&text=txt), a folder that datasets.save_to_disk wrote "
        "(hfds:DIR?image=COLUMN&text=COLUMN) or an existing folder of features "
        f"(FOLDER/MODALITY/ID.npy or FOLDER/MODALITY.safetensors); got {name!r}."
    )


def load_recorded(name: str, cache_dir: Path, kinds: Mapping[str, str] | None, report: Path) -> PairDataset:
    """Read a data set without the items that a report left out of it; another data set, or without a report, whole.

    Args:
        report: bad items that a run has left out, which need not exist.

    Raises:
        ArtifactError: the report is malformed.
        FluxTalkError: as for `load_dataset`.
    """
    if report.is_file():
        data_hash, bad = read_report(report)
        dataset = load_dataset(name, cache_dir, kinds, tolerated=1.0)
        if dataset.content_hash == data_hash:
            return leave_out(dataset, bad)
    return load_dataset(name, cache_dir, kinds)


def default_cache_dir(option: str | None) -> Path:
    """The folder for renderings and features: the option, else the user's (`user_cache_dir`)."""
    return Path(option) if option else user_cache_dir()
