"""What a long embedding has done so far, kept beside its output: one file for every few items."""

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

_VECTORS, _DIGEST, _IDS = "vectors", "digest", "ids"


class Parts:
    """The finished parts of one output.

    A part is known by a digest of its items and of everything that decides their vectors, so what was left by another
    call, or by other items, is never taken.

    Args:
        output: the file that is being made.
        job: what decides the vectors, besides the items; plain types.
    """

    def __init__(self, output: Path, job: Mapping[str, Any]) -> None:
        self.folder = output.with_name(f"{output.name}.parts")
        self._job = canonical_json(dict(job)).encode()

    def has(self, number: int, items: Sequence[Item]) -> bool:
        """Whether this part was finished, of these items."""
        try:
            with safe_open(self._path(number), framework="numpy") as file:
                return bool(file.metadata()[_DIGEST] == self._digest(items))
        except (OSError, SafetensorError):
            return False

    def write(self, number: int, items: Sequence[Item], vectors: Vectors) -> None:
        """Keep a part, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {_DIGEST: self._digest(items), _IDS: json.dumps([item.id for item in items])}
        write_atomically(self._path(number), save({_VECTORS: np.ascontiguousarray(vectors)}, facts))

    def read(self, count: int) -> Iterator[tuple[list[str], Vectors]]:
        """Ids and vectors of the first ``count`` parts."""
        for number in range(count):
            with safe_open(self._path(number), framework="numpy") as file:
                yield json.loads(file.metadata()[_IDS]), file.get_tensor(_VECTORS)

    def remove(self) -> None:
        """Remove all of them."""
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
