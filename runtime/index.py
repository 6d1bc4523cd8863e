"""A search index of pooled embeddings, on disk, over `usearch`.

::

    INDEX/
      index.json        what it is: bundle, modality, k, hashes
      items.json        the items' names, by row
      vectors.usearch   cosine, float32
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.artifacts import atomic_folder, hash_file, write_json
from fluxtalk.config import StrictConfig
from fluxtalk.errors import BackendError, IndexFileError, UsageError

FORMAT = "fluxtalk.index"
SCHEMA_VERSION = 1
EXACT_UP_TO = 20_000
"""Items up to which a search looks at all of them; above, the graph of near neighbours may miss some."""
_VECTORS, _ITEMS, _MANIFEST = "vectors.usearch", "items.json", "index.json"


@dataclass(frozen=True)
class IndexManifest(StrictConfig):
    """What an index says about itself."""

    bundle: str
    """Folder of the bundle that embedded it, as it was named."""
    bundle_hash: str
    modality: str
    k: int
    """Register tokens of the stored embeddings."""
    dim: int
    items: int
    files: dict[str, str]
    format: str = FORMAT
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Hit:
    """One answer."""

    item: str
    similarity: float
    """Cosine."""


def build_index(
    output: Path,
    vectors: NDArray[np.float32],
    items: Sequence[str],
    bundle: str,
    bundle_hash: str,
    modality: str,
    k: int,
) -> IndexManifest:
    """Write an index.

    Args:
        output: the index's folder; it must not exist, or be empty.
        vectors: (items, dim), normalised.
        items: their names.

    Raises:
        IndexFileError: the folder is in the way.
        BackendError: usearch is not installed.
    """
    usearch = _import_usearch()
    with atomic_folder(output, IndexFileError) as folder:
        index = usearch.Index(ndim=vectors.shape[1], metric="cos", dtype="f32")
        index.add(np.arange(len(vectors)), vectors)
        index.save(str(folder / _VECTORS))
        write_json(folder / _ITEMS, list(items))
        files = {name: hash_file(folder / name) for name in (_VECTORS, _ITEMS)}
        manifest = IndexManifest(bundle, bundle_hash, modality, k, vectors.shape[1], len(vectors), files)
        write_json(folder / _MANIFEST, manifest.to_dict())
    return manifest


class SearchIndex:
    """An index opened for search; vectors stay on disk, memory-mapped.

    Raises:
        IndexFileError: it is missing, foreign, or was changed.
        BackendError: usearch is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = read_index_manifest(folder)
        for name, expected in self.manifest.files.items():
            if not (folder / name).is_file() or hash_file(folder / name) != expected:
                raise IndexFileError(
                    f"{folder / name} is missing or was changed since the index was built; build it again."
                )
        self._items: list[str] = json.loads((folder / _ITEMS).read_text(encoding="utf-8"))
        self._index = _import_usearch().Index.restore(str(folder / _VECTORS), view=True)

    def search(self, queries: NDArray[np.float32], count: int = 10) -> list[list[Hit]]:
        """The items most similar to each query, best first.

        Args:
            queries: (queries, dim), normalised, of the same bundle; any modality.
            count: at most so many items per query.

        Raises:
            UsageError: the dimension or the count does not fit.
        """
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise UsageError(
                f"This index holds vectors of dimension {self.manifest.dim}; got queries of shape {queries.shape}."
            )
        if count < 1:
            raise UsageError(f"count is at least 1; got {count}.")
        found = []
        for query in queries:
            matches = self._index.search(query, count, exact=self.manifest.items <= EXACT_UP_TO)
            found.append(
                [
                    Hit(self._items[int(key)], 1.0 - float(distance))
                    for key, distance in zip(matches.keys, matches.distances, strict=True)
                ]
            )
        return found


def read_index_manifest(folder: Path) -> IndexManifest:
    """The manifest of an index.

    Raises:
        IndexFileError: the folder is no index, or of another schema.
    """
    try:
        content = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"its format is {content['format']} {content['schema_version']}")
        manifest = IndexManifest.from_dict(content)
        if set(manifest.files) != {_VECTORS, _ITEMS}:
            raise ValueError(f"it names the files {', '.join(manifest.files)}")
        return manifest
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise IndexFileError(
            f"{folder} is no index that this FluxTalk reads ({error}); make one with `fluxtalk index build`."
        ) from None


def _import_usearch() -> Any:
    try:
        import usearch.index
    except ImportError:
        raise BackendError("Searching needs usearch: pip install 'fluxtalk[search]'.") from None
    return usearch.index
