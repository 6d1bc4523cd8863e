"""Finished parts of a long embedding, kept beside its output in one file for every few items."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fluxtalk.artifacts.files import canonical_json, write_atomically
from fluxtalk.runtime.bulk.inputs import Item
from fluxtalk.runtime.vectors import Vectors

_VECTORS, _DIGEST, _IDS, _BAD = "vectors", "digest", "ids", "bad"


class PartFiles:
    """Finished parts of one output.

    Each part holds a digest of its items and of everything else that its vectors depend on, so that parts of another
    call, or of other items, are never used.

    Args:
        output: the file that is being made.
        job: everything that the vectors depend on besides the items, in plain types.
    """

    def __init__(self, output: Path, job: Mapping[str, Any]) -> None:
        self.folder = output.with_name(f"{output.name}.parts")
        self._job = canonical_json(dict(job)).encode()

    def has(self, number: int, items: Sequence[Item]) -> bool:
        """True if this part, of these items, is finished."""
        try:
            with safe_open(self._path(number), framework="numpy") as file:
                return bool(file.metadata()[_DIGEST] == self._digest(items))
        except (OSError, SafetensorError):
            return False

    def bad(self, number: int) -> dict[int, str]:
        """Positions of a part's items that have no vector, because they cannot be used, to the reason."""
        with safe_open(self._path(number), framework="numpy") as file:
            return {int(position): why for position, why in json.loads(file.metadata().get(_BAD, "{}")).items()}

    def ids(self, number: int) -> list[str]:
        """Ids of a part's vectors."""
        with safe_open(self._path(number), framework="numpy") as file:
            return list(json.loads(file.metadata()[_IDS]))

    def write(self, number: int, items: Sequence[Item], vectors: Vectors, bad: Mapping[int, str]) -> None:
        """Write a part atomically.

        Args:
            items: all of them.
            vectors: those of the others than ``bad``.
            bad: positions of items that cannot be used, to the reason.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        ids = [item.id for position, item in enumerate(items) if position not in bad]
        metadata = {_DIGEST: self._digest(items), _IDS: json.dumps(ids), _BAD: json.dumps(dict(bad))}
        write_atomically(self._path(number), save({_VECTORS: np.ascontiguousarray(vectors)}, metadata))

    def read(self, count: int) -> Iterator[tuple[list[str], Vectors]]:
        """Read ids and vectors of the first ``count`` parts."""
        for number in range(count):
            with safe_open(self._path(number), framework="numpy") as file:
                yield json.loads(file.metadata()[_IDS]), file.get_tensor(_VECTORS)

    def remove(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.safetensors"

    def _digest(self, items: Sequence[Item]) -> str:
        digest = hashlib.sha256(self._job)
        for item in items:
            value = item.value if isinstance(item.value, bytes) else str(item.value).encode(errors="surrogatepass")
            for part in (item.id.encode(errors="surrogatepass"), value):
                digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()
