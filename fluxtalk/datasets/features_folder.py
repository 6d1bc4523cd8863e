"""A folder of precomputed features: one array per id and modality.

::

    FOLDER/video/clip-1.npy            one file per id; an id may name sub-folders: a/clip-1
    FOLDER/video/clip-2.npy
    FOLDER/captions.safetensors        or one file per modality, whose tensors are named by the ids
    FOLDER/train|validation|test/...   the same below the splits; else ids are divided by hash, as tables are

An array is (length, dim), or (dim,) for a single vector. Alternatives of each other, such as several captions of one
clip, are called ``clip-1#0``, ``clip-1#1`` and so on. An id need not be in every modality;
one that is in a single modality is in no pair, and is passed over with a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxtalk.arrays import Array
from fluxtalk.artifacts.files import hash_bytes, hash_json
from fluxtalk.config import require_modality_name
from fluxtalk.datasets.pairs import SPLIT_NAMES, PairDataset
from fluxtalk.datasets.reporting import abbreviate, with_progress
from fluxtalk.datasets.splits import ItemColumn, gap_notes, make_splits, split_by_hash
from fluxtalk.datasets.tensor_files import TensorFiles, TensorName, tensor_names
from fluxtalk.errors import DataError, InputError, UsageError, reason
from fluxtalk.preprocess.features import FeaturesPreprocessor, read_array

_ALTERNATIVE = re.compile(r"(.+)#(\d+)", re.DOTALL)
_TENSORS = ".safetensors"


@dataclass(frozen=True)
class _Entry:
    """One array of the folder."""

    id: str
    number: int
    """Number among the id's alternatives; -1 if it is the only one."""
    split: str | None
    source: Path | TensorName


def load(text: str, tolerated: float = 0.0) -> PairDataset:
    """Read a folder of precomputed features.

    Every array is read once, one at a time, to hash and check it.

    Args:
        text: the folder, as ``--data`` names it.
        tolerated: see `fluxtalk.datasets.load_dataset`.

    Raises:
        DataError: the folder has fewer than two modalities, a file that is not an array, more than the tolerated
            share of arrays that are not finite or not of one dimension per modality (all counted, the first 20
            listed), an id in two splits, or no id with features in two modalities.
    """
    folder = Path(text)
    entries = _entries(folder)
    split_of = _splits_by_id(folder, entries)
    digests = _digests(folder, entries, tolerated)
    index = {id_: position for position, id_ in enumerate(split_of)}
    codes: dict[str, int] = {}
    columns = {}
    for modality, found in entries.items():
        groups = np.array([index[entry.id] for entry in found], dtype=np.int64)
        numbers = [codes.setdefault(digest, len(codes)) for digest in digests[modality]]
        values = TensorFiles(tuple(entry.source for entry in found))
        columns[modality] = ItemColumn(groups, np.array(numbers, dtype=np.uint64), values.take)
    key = {
        m: [[split_of[entry.id], entry.id, digest] for entry, digest in zip(found, digests[m], strict=True)]
        for m, found in entries.items()
    }
    return PairDataset(
        name=text,
        modalities=tuple(entries),
        splits=make_splits(tuple(split_of), tuple(split_of.values()), columns),
        content_hash=hash_json({"features": key}),
        notes=gap_notes(text, tuple(split_of), tuple(split_of), columns),
    )


def _entries(folder: Path) -> dict[str, list[_Entry]]:
    """Modality to its arrays, sorted by id and number."""
    parts = [name for name in SPLIT_NAMES if (folder / name).is_dir()]
    beside = [path.name for path in _modality_paths(folder) if path.name not in SPLIT_NAMES]
    if parts and beside:
        raise DataError(
            f"The folder {folder} has {abbreviate(beside)} beside {', '.join(parts)}; "
            "if there is a folder per split, every modality is in one."
        )
    found: dict[str, list[_Entry]] = {}
    roots: list[tuple[str | None, Path]] = [(name, folder / name) for name in parts]
    for split, root in roots or [(None, folder)]:
        for path in _modality_paths(root):
            modality = path.name.removesuffix(_TENSORS)
            try:
                require_modality_name(modality)
            except UsageError as error:
                raise DataError(f"{path} cannot be a modality's features: {error}") from None
            if path.is_file() and path.with_suffix("").is_dir():
                raise DataError(f"The features of {modality} are both in {path} and in a folder; keep one of them.")
            found.setdefault(modality, []).extend(_named(path, split))
    if len(found) < 2:
        raise DataError(
            f"The folder {folder} holds the features of {len(found)} modalities and needs two or more; "
            "name them FOLDER/MODALITY/ID.npy or FOLDER/MODALITY.safetensors."
        )
    return {m: sorted(found[m], key=lambda entry: (entry.id, entry.number)) for m in sorted(found)}


def _modality_paths(root: Path) -> list[Path]:
    """Sub-folders and safetensors files; others, such as a read-me, are ignored."""
    paths = [path for path in root.iterdir() if not path.name.startswith(".")]
    return sorted(path for path in paths if path.is_dir() or path.suffix == _TENSORS)


def _named(path: Path, split: str | None) -> Iterator[_Entry]:
    if path.is_file():
        for name in tensor_names(path):
            yield _entry(name, split, TensorName(path, name))
        return
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    strange = [str(file.relative_to(path)) for file in files if file.suffix != ".npy"]
    if strange:
        raise DataError(
            f"The folder {path} holds {len(strange)} files that are not .npy: {abbreviate(strange)}; move them."
        )
    for file in files:
        yield _entry(file.relative_to(path).as_posix().removesuffix(".npy"), split, file)


def _entry(name: str, split: str | None, source: Path | TensorName) -> _Entry:
    match = _ALTERNATIVE.fullmatch(name)
    return _Entry(match[1], int(match[2]), split, source) if match else _Entry(name, -1, split, source)


def _splits_by_id(folder: Path, entries: dict[str, list[_Entry]]) -> dict[str, str]:
    """Split of every id, in the order of the ids."""
    everywhere: dict[str, set[str]] = {}
    for found in entries.values():
        for entry in found:
            everywhere.setdefault(entry.id, set()).add(entry.split or split_by_hash(entry.id))
    strays = [f"{id_!r} ({', '.join(sorted(splits))})" for id_, splits in sorted(everywhere.items()) if len(splits) > 1]
    if strays:
        raise DataError(
            f"The folder {folder} has {len(strays)} ids in several splits: {abbreviate(strays)}; "
            "an id belongs to one split."
        )
    return {id_: splits.pop() for id_, splits in sorted(everywhere.items())}


def _digests(folder: Path, entries: dict[str, list[_Entry]], tolerated: float) -> dict[str, list[str]]:
    """Modality to the SHA-256 of each preprocessed array, which does not depend on how it is stored."""
    sources = {entry.source for found in entries.values() for entry in found}
    files = {source if isinstance(source, Path) else source.path for source in sources}
    total = sum(file.stat().st_size for file in files)
    flat = [(m, entry) for m, found in entries.items() for entry in found]
    values = TensorFiles(tuple(entry.source for _, entry in flat))
    digests: dict[str, list[str]] = {modality: [] for modality in entries}
    dims: dict[str, int] = {}
    problems = []
    for row, (modality, entry) in enumerate(with_progress(flat, f"hashing {folder.name}", "array", total)):
        try:
            array = _prepared(values[row], modality, dims)
        except (InputError, DataError) as error:
            problems.append(f"{entry.source} ({reason(error)})")
            digests[modality].append(f"unusable: {entry.split}/{entry.id}#{entry.number}")
            continue
        digests[modality].append(hash_bytes(str(array.shape).encode() + array.tobytes()))
    if len(problems) > tolerated * len(flat):
        raise DataError(
            f"The folder {folder} has {len(problems)} unusable arrays of {len(flat)}: {abbreviate(problems)}."
        )
    return digests


def _prepared(value: Any, modality: str, dims: dict[str, int]) -> Array:
    """Preprocess one item, with the dimension of the modality's first array."""
    array, _ = read_array(value)
    if modality not in dims and array.ndim in (1, 2):
        dims[modality] = int(array.shape[-1])
    return FeaturesPreprocessor(dims.get(modality, 1)).prepare(array)
