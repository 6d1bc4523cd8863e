"""The index of a tar shard: its samples, and the offset of each of their members, from one pass over the headers."""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fluxtalk.errors import DataError, reason

# WebDataset's rules (webdataset.tariterators.base_plus_ext and tar_file_iterator), whose package would bring torch:
# a key ends before the first dot of the file's name, and names such as __index__ are not samples.
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True)
class Member:
    """Bytes of a file inside its shard."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardSample:
    """Consecutive members with one key."""

    key: str
    members: dict[str, Member]
    """Extension, in lower case and without the leading dot, to member."""


def index_shard(path: Path, file: BinaryIO) -> list[ShardSample]:
    """Read the headers of an uncompressed tar, in its order.

    Args:
        path: its name in sentences.
        file: the open tar; its position is moved.

    Raises:
        DataError: it is not a whole tar, holds a sparse file, a sample has an extension twice, or its files do not
            follow each other.
    """
    samples: list[ShardSample] = []
    keys: set[str] = set()
    for name, member in _members(path, file):
        match = None if _META.match(name) else _KEY.fullmatch(name)
        if match is None:
            continue
        key, extension = match[1], match[2].lower()
        if not samples or samples[-1].key != key:
            if key in keys:
                raise DataError(
                    f"The shard {path} has the key {key!r} at two places; a sample's files follow each other, "
                    "and its key is its own."
                )
            keys.add(key)
            samples.append(ShardSample(key, {}))
        if extension in samples[-1].members:
            raise DataError(f"The shard {path} has {name!r} twice; each file of a sample has its own extension.")
        samples[-1].members[extension] = member
    return samples


def _members(path: Path, file: BinaryIO) -> list[tuple[str, Member]]:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            files = [info for info in tar if info.isreg()]
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"The shard {path} cannot be read ({reason(error)}); it must be a whole, uncompressed tar file."
        ) from None
    # tarfile takes a damaged header, or a file cut off between two members, as the archive's end.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise DataError(f"The shard {path} is damaged or cut off at byte {end}; copy or write it again.")
    sparse = [info.name for info in files if info.issparse()]
    if sparse:
        raise DataError(f"The shard {path} holds {sparse[0]!r} as a sparse file; write it without tar's --sparse.")
    return [(info.name, Member(info.offset_data, info.size)) for info in files]
