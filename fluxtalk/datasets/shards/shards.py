"""WebDataset shards: tar files in which the files of one sample follow each other and share a name.

::

    shards-000000.tar:  dog-1.jpg  dog-1.txt  tea-2.jpg  tea-2.txt  ...

Their name is ``shards-{000000..000099}.tar?image=jpg;png&text=txt``: braces expand as in a shell, and the query lists
each modality's extensions, of which the first that a sample has is taken. Without a query, ``image`` is
``jpg;jpeg;png;webp`` and whatever else is read, ``text`` is ``txt``, ``audio`` is ``wav;flac;ogg`` and ``features``
is ``npy``, as far as they occur. A sample's key is its id; ids are split by hash, as those of tables are. A sample
may lack modalities, and a blank text counts as missing; a sample that is left with a single one is in no pair, and is
passed over with a note.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fluxtalk.artifacts.files import hash_json
from fluxtalk.datasets.data_name import DataName, parse_data_name
from fluxtalk.datasets.pairs import PairDataset
from fluxtalk.datasets.reporting import abbreviate, require_files, with_progress
from fluxtalk.datasets.shards.tar_index import ShardSample, index_shard
from fluxtalk.datasets.shards.values import ShardValues, decode
from fluxtalk.datasets.splits import ItemColumn, gap_notes, make_splits, split_by_hash
from fluxtalk.errors import BackendError, DataError, InputError, UsageError, reason
from fluxtalk.preprocess import FILE_SUFFIXES
from fluxtalk.preprocess.visible_text import is_visible

MOST_SHARDS = 1_000_000
_RANGE = re.compile(r"\{(-?[0-9]+)\.\.(-?[0-9]+)")
_FIRST = {
    "image": ("jpg", "jpeg", "png", "webp"),
    "text": ("txt",),
    "audio": ("wav", "flac", "ogg"),
    "features": ("npy",),
}
"""Usual extensions that are looked for before all others of their kind."""
DEFAULT_EXTENSIONS = {
    kind: (*first, *(s[1:] for s in FILE_SUFFIXES.get(kind, ()) if s[1:] not in first))
    for kind, first in _FIRST.items()
}


def load(name: DataName, tolerated: float = 0.0) -> PairDataset:
    """Index shards, in one pass that also hashes them; items are read later, by shard, offset and size.

    Args:
        tolerated: see `fluxtalk.datasets.load_dataset`.

    Raises:
        UsageError: the query or the braces are malformed.
        BackendError: a library is missing.
        DataError: shards are missing (all counted, the first 20 listed), damaged or cut off, a key occurs twice, more
            than the tolerated share of members is not what its extension says (all counted, the first 20 listed), a
            modality does not occur, or no sample has two modalities.
    """
    paths = shard_paths(name)
    extensions = modality_extensions(name)
    found = {modality: _FoundItems() for modality in extensions}
    keys: list[str] = []
    hashes = []
    problems: list[str] = []
    total = sum(path.stat().st_size for path in paths)
    for shard, path in enumerate(with_progress(paths, f"indexing {len(paths)} shards", "shard", total)):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            for sample in index_shard(path, file):
                _collect(path, file, shard, len(keys), sample, extensions, found, problems)
                keys.append(sample.key)
        hashes.append([path.name, path.stat().st_size, digest])
    _require_unique(name, keys)
    if name.query is None:
        found = {modality: items for modality, items in found.items() if items.groups}
    _require_modalities(name, found)
    members = sum(len(items.groups) for items in found.values())
    if len(problems) > tolerated * members:
        raise DataError(
            f"{name.text!r} has {len(problems)} unusable of {members} members: {abbreviate(problems)}; correct them, "
            "or leave them out."
        )
    columns = {modality: items.column(paths, extensions[modality]) for modality, items in found.items()}
    return PairDataset(
        name=name.text,
        modalities=tuple(found),
        splits=make_splits(keys, [split_by_hash(key) for key in keys], columns),
        content_hash=hash_json({"shards": hashes, "extensions": _hashed(name, extensions, found)}),
        notes=gap_notes(repr(name.text), keys, keys, columns),
    )


@dataclass(frozen=True)
class Sample:
    """One sample of a stream."""

    key: str
    values: Mapping[str, Any]
    """Modality to its value, as in `Items.values`; modalities that the sample lacks are absent."""


def stream(text: str, rank: int = 0, world_size: int = 1, worker: int = 0, workers: int = 1) -> Iterator[Sample]:
    """Read shards from front to end without an index, by the `webdataset` library.

    Shards are dealt to ranks, and each rank's to its workers, so that together they read every sample once. Training
    does not need this: it reads shards through the feature cache. Two faults that `load` reports go unnoticed: a key in
    two shards, and a shard cut off exactly between two files.

    Args:
        text: the shards, as ``--data`` names them.
        rank: of ``world_size`` processes, from 0.
        worker: of the ``workers`` of each process, from 0.

    Raises:
        UsageError: a number is out of range, or the name is not one of shards.
        BackendError: a library is missing.
        DataError: shards are missing or fewer than all workers, or, while reading, damaged.
    """
    name = parse_data_name(text)
    if name is None or name.suffix != ".tar":
        raise UsageError(f"Shards are named as in shards-{{000000..000099}}.tar?image=jpg&text=txt; got {text!r}.")
    if not (0 <= rank < world_size and 0 <= worker < workers):
        raise UsageError(
            f"A stream needs a rank below its {world_size} processes and a worker below its {workers} workers, "
            f"from 0; got rank {rank} and worker {worker}."
        )
    paths = shard_paths(name)
    if len(paths) < world_size * workers:
        raise DataError(
            f"{text!r} is {len(paths)} shards, too few for {world_size} processes with {workers} workers each; "
            "write more shards or use fewer workers."
        )
    return _stream(paths[rank::world_size][worker::workers], modality_extensions(name))


def shard_paths(name: DataName) -> list[Path]:
    """Existing shards that a name stands for, in its order; raises as `load` does."""
    shown = shard_names(name)
    paths = [Path(path) for path in shown]
    require_files(f"{name.text!r}", paths, shown, "check the path and the numbers in braces")
    return paths


def shard_names(name: DataName) -> list[str]:
    """Expand the braces of a name to paths, whether or not such files exist.

    Raises:
        UsageError: the braces do not match, or make more than `MOST_SHARDS` names.
        BackendError: a library is missing.
    """
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise BackendError(f"The shards {name.path} need braceexpand: pip install 'fluxtalk[data]'.") from None
    try:
        # The library makes a range whole before it gives the first name.
        long = any(abs(int(last) - int(first)) >= MOST_SHARDS for first, last in _RANGE.findall(name.path))
        names = [] if long else list(itertools.islice(braceexpand(name.path), MOST_SHARDS + 1))
        if long or len(names) > MOST_SHARDS:
            raise UsageError(f"The braces in {name.path!r} make more than {MOST_SHARDS:,} names; write fewer.")
        return names
    except ValueError:
        raise UsageError(f"The braces in {name.path!r} do not match; write {{000000..000099}}.") from None


def modality_extensions(name: DataName) -> dict[str, tuple[str, ...]]:
    """Modality to its extensions, of which the first that a sample has is taken.

    Raises:
        UsageError: the query names fewer than two modalities, or an id or split.
    """
    if name.query is None:
        return dict(DEFAULT_EXTENSIONS)
    surplus = sorted(name.query.keys() & {"id", "split"})
    if surplus or len(name.query) < 2:
        raise UsageError(
            f"--data names the extensions of two modalities or more, as in image=jpg;png&text=txt, and no id or split "
            f"(a sample's key is its id); got {', '.join(name.query)}."
        )
    extensions = {m: tuple(e.strip().lower().removeprefix(".") for e in v.split(";")) for m, v in name.query.items()}
    if not all(map(all, extensions.values())):
        raise UsageError(f"--data names an empty extension in {name.text!r}; separate extensions by one semicolon.")
    return extensions


@dataclass
class _FoundItems:
    """Items of one modality that were found so far, as plain numbers: there may be many millions."""

    groups: array[int] = field(default_factory=lambda: array("q"))
    shards: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    kinds: array[int] = field(default_factory=lambda: array("q"))
    fingerprints: array[int] = field(default_factory=lambda: array("Q"))

    def column(self, paths: Sequence[Path], extensions: Sequence[str]) -> ItemColumn:
        """Items as `make_splits` takes them."""
        numbers = (self.shards, self.offsets, self.sizes, self.kinds)
        values = ShardValues(paths, extensions, *(np.array(part, dtype=np.int64) for part in numbers))
        groups = np.array(self.groups, dtype=np.int64)
        return ItemColumn(groups, np.array(self.fingerprints, dtype=np.uint64), values.take)


def _collect(
    path: Path,
    file: BinaryIO,
    shard: int,
    group: int,
    sample: ShardSample,
    extensions: Mapping[str, Sequence[str]],
    found: Mapping[str, _FoundItems],
    problems: list[str],
) -> None:
    """Add a sample's items; one that cannot be decoded is one too, and is told in ``problems``."""
    for modality, names in extensions.items():
        kind = next((i for i, name in enumerate(names) if name in sample.members), None)
        if kind is None:
            continue
        member = sample.members[names[kind]]
        file.seek(member.offset)
        data = file.read(member.size)
        try:
            if _value(path, sample.key, names[kind], data) is None:
                continue
        except DataError as error:
            problems.append(reason(error))
        items = found[modality]
        items.groups.append(group)
        items.shards.append(shard)
        items.offsets.append(member.offset)
        items.sizes.append(member.size)
        items.kinds.append(kind)
        # With 64 bits, the probability that any two of ten million different items share a hash is 3 in a million.
        items.fingerprints.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big"))


def _value(path: Path, key: str, extension: str, data: bytes) -> Any:
    """Decode a member; a blank text is None.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        value = decode(extension, data)
    except InputError as error:
        raise DataError(f"{key}.{extension} in the shard {path} cannot be used: {error}") from None
    return None if isinstance(value, str) and not is_visible(value) else value


def _hashed(
    name: DataName, extensions: Mapping[str, Sequence[str]], found: Mapping[str, _FoundItems]
) -> dict[str, list[str]]:
    """Extensions that were looked for; usual ones that do not occur are left out, so that more may become usual."""
    if name.query is not None:
        return {m: list(extensions[m]) for m in found}
    occurring = {m: {extensions[m][kind] for kind in set(items.kinds)} for m, items in found.items()}
    return {m: [e for e in extensions[m] if e in _FIRST[m] or e in occurring[m]] for m in found}


def _require_unique(name: DataName, keys: Sequence[str]) -> None:
    if len(set(keys)) < len(keys):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        raise DataError(
            f"{len(twice)} keys of {name.text!r} are in several shards: {abbreviate(twice)}; a sample's key is its own."
        )


def _require_modalities(name: DataName, found: Mapping[str, _FoundItems]) -> None:
    absent = [modality for modality, items in found.items() if not items.groups]
    if absent:
        raise DataError(f"No sample of {name.text!r} has {abbreviate(absent)}; check the extensions.")
    if len(found) < 2:
        defaults = "; ".join(f"{m} ({', '.join(e)})" for m, e in DEFAULT_EXTENSIONS.items())
        raise DataError(
            f"The samples of {name.path} have {abbreviate(list(found)) or 'none'} of the usual modalities, {defaults}; "
            "name two or more in --data, as in ?image=jpg&text=caption.txt."
        )


def _stream(paths: Sequence[Path], extensions: Mapping[str, Sequence[str]]) -> Iterator[Sample]:
    try:
        # webdataset imports torch if it is installed, so only a stream imports webdataset.
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ImportError:
        raise BackendError("Streaming shards needs webdataset: pip install 'fluxtalk[data]'.") from None
    for path in paths:
        # webdataset.WebDataset would leave its files open for the garbage collector.
        with path.open("rb") as file:
            samples = group_by_keys(tar_file_expander([{"url": str(path), "stream": file}]))
            try:
                yield from (_sample(path, sample, extensions) for sample in samples)
            except (OSError, EOFError, ValueError, tarfile.TarError) as error:
                # webdataset appends the location in its own words.
                what = str(error.args[0]).split(" @ ")[0] if error.args else type(error).__name__
                raise DataError(
                    f"The shard {path} cannot be read to its end ({what}); copy or write it again."
                ) from None


def _sample(path: Path, sample: Mapping[str, Any], extensions: Mapping[str, Sequence[str]]) -> Sample:
    values = {}
    for modality, names in extensions.items():
        extension = next((name for name in names if name in sample), None)
        if extension is not None:
            value = _value(path, sample["__key__"], extension, sample[extension])
            if value is not None:
                values[modality] = value
    return Sample(sample["__key__"], values)
