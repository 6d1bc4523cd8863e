"""Finished parts of a long embedding, kept beside its output, wherever that is, in one file for every few items."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from fluxtalk.artifacts.files import canonical_json
from fluxtalk.artifacts.storage import RemotePath, StoredPath, write_file
from fluxtalk.runtime.bulk.inputs import Item
from fluxtalk.runtime.vectors import Vectors

_VECTORS, _DIGEST, _IDS, _BAD = "vectors", "digest", "ids", "bad"
_LENGTH_BYTES = 8
_HEADER_BYTES = 1 << 16
"""Bytes of a part in object storage that are asked for to see its metadata: more only if they are longer."""


class PartFiles:
    """Finished parts of one output.

    Each part holds a digest of its items and of everything else that its vectors depend on, so that parts of another
    call, or of other items, are never used.

    Args:
        output: the file that is being made.
        job: everything that the vectors depend on besides the items, in plain types.
    """

    def __init__(self, output: StoredPath, job: Mapping[str, Any]) -> None:
        self.folder = output.with_name(f"{output.name}.parts")
        self._job = canonical_json(dict(job)).encode()

    def has(self, number: int, items: Sequence[Item]) -> bool:
        """True if this part, of these items, is finished."""
        try:
            return self._metadata(number)[_DIGEST] == self._digest(items)
        except (OSError, ValueError, KeyError, SafetensorError):
            return False

    def bad(self, number: int) -> dict[int, str]:
        """Positions of a part's items that have no vector, because they cannot be used, to the reason."""
        return {int(position): why for position, why in json.loads(self._metadata(number).get(_BAD, "{}")).items()}

    def ids(self, number: int) -> list[str]:
        """Ids of a part's vectors."""
        return list(json.loads(self._metadata(number)[_IDS]))

    def write(self, number: int, items: Sequence[Item], vectors: Vectors, bad: Mapping[int, str]) -> None:
        """Write a part atomically.

        Args:
            items: all of them.
            vectors: those of the others than ``bad``.
            bad: positions of items that cannot be used, to the reason.
        """
        ids = [item.id for position, item in enumerate(items) if position not in bad]
        metadata = {_DIGEST: self._digest(items), _IDS: json.dumps(ids), _BAD: json.dumps(dict(bad))}
        write_file(self._path(number), save({_VECTORS: np.ascontiguousarray(vectors)}, metadata))

    def read(self, count: int) -> Iterator[tuple[list[str], Vectors]]:
        """Read ids and vectors of the first ``count`` parts."""
        for number in range(count):
            path = self._path(number)
            if isinstance(path, RemotePath):
                data = path.read_bytes()
                yield json.loads(_metadata_in(data)[_IDS]), load(data)[_VECTORS]
                continue
            with safe_open(path, framework="numpy") as file:
                yield json.loads(file.metadata()[_IDS]), file.get_tensor(_VECTORS)

    def remove(self) -> None:
        """Remove all parts."""
        if isinstance(self.folder, RemotePath):
            self.folder.remove_folder()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> StoredPath:
        return self.folder / f"{number:08d}.safetensors"

    def _metadata(self, number: int) -> dict[str, str]:
        path = self._path(number)
        if isinstance(path, RemotePath):
            data = path.read_bytes(_HEADER_BYTES)
            size = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
            return _metadata_in(data if size <= len(data) else path.read_bytes(size))
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata())

    def _digest(self, items: Sequence[Item]) -> str:
        digest = hashlib.sha256(self._job)
        for item in items:
            value = item.value if isinstance(item.value, bytes) else str(item.value).encode(errors="surrogatepass")
            for part in (item.id.encode(errors="surrogatepass"), value):
                digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def _metadata_in(data: bytes) -> dict[str, str]:
    """Read the metadata of a safetensors file from its beginning: length, then JSON, as its format says."""
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    return dict(json.loads(data[_LENGTH_BYTES:end])["__metadata__"])
