"""A search index on disk: one vector for each item, or its tokens, and where they come from.

::

    INDEX/
      index.json        what it is: bundle, space, modality, kind of output, k, type, hashes
      items.json        the items' names, by row
      vectors.usearch   what is searched: one vector for each item
      tokens.npy        of an index of tokens: (items, tokens, dim), by which candidates are put in order
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxtalk.artifacts.bundle import MANIFEST as BUNDLE_MANIFEST
from fluxtalk.artifacts.files import atomic_folder, hash_file, write_json
from fluxtalk.config import StrictConfig
from fluxtalk.errors import IndexFileError, UsageError, reason
from fluxtalk.runtime.embedder import Embedder
from fluxtalk.runtime.index.multi_vectors import MultiVectors, TokensFile
from fluxtalk.runtime.index.near_vectors import NearVectors
from fluxtalk.runtime.vectors import DTYPES, directions

FORMAT = "fluxtalk.index"
SCHEMA_VERSION = 2
INDEX_KINDS = ("pooled", "concat", "tokens")
_VECTORS, _TOKENS, _ITEMS, _MANIFEST = "vectors.usearch", "tokens.npy", "items.json", "index.json"


@dataclass(frozen=True)
class IndexContent(StrictConfig):
    """What the vectors of an index are."""

    bundle: str
    """Folder of the bundle that embedded them: a hint, which `space_id` makes sure of."""
    space_id: str
    """See `Manifest.space_id`."""
    modality: str
    output: str
    """``pooled`` or ``concat``: one vector for each item. ``tokens``: its overlapping tokens."""
    k: int
    """Register tokens that were computed."""
    dtype: str = "float32"
    """How they are stored, one of `fluxtalk.runtime.vectors.DTYPES`."""

    def __post_init__(self) -> None:
        if self.output not in INDEX_KINDS:
            raise UsageError(f"An index holds {', '.join(INDEX_KINDS)}; got {self.output!r}.")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype is one of {', '.join(DTYPES)}; got {self.dtype!r}.")

    @classmethod
    def of(
        cls, embedder: Embedder, modality: str, output: str = "pooled", k: int | None = None, dtype: str = "float32"
    ) -> IndexContent:
        """What an index of a loaded bundle holds."""
        bundle = embedder.bundle
        return cls(
            str(bundle.folder.resolve()),
            bundle.manifest.space_id(output),
            modality,
            output,
            k or embedder.num_tokens,
            dtype,
        )


@dataclass(frozen=True)
class IndexManifest(StrictConfig):
    """What an index says about itself."""

    bundle: str
    space_id: str
    modality: str
    output: str
    k: int
    dtype: str
    dim: int
    """Numbers of a vector, or of one token."""
    items: int
    bytes_per_item: int
    """Of its vectors; the graph of near neighbors comes on top."""
    files: dict[str, str]
    """File name to SHA-256."""
    bundle_from_index: str = ""
    """The bundle's folder from the index's, for where both were moved together."""
    items_folder: str = ""
    """What paths among the names are relative to."""
    items_from_index: str = ""
    """The same, from the index's folder."""
    format: str = FORMAT
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Hit:
    """One answer."""

    item: str
    similarity: float
    """Cosine; in an index of tokens the MaxSim score, which lies in -1..1 as well."""


def build_index(
    output: Path, chunks: Iterable[NDArray[np.float32]], items: Sequence[str], content: IndexContent
) -> IndexManifest:
    """Write an index; what it holds of the vectors is never in memory as a whole.

    Args:
        output: the index's folder; it must not exist, or be empty.
        chunks: one after the other the items' vectors (count, dim), or overlapping tokens (count, tokens, dim).
        items: their names.
        content: what they are.

    Raises:
        IndexFileError: the folder is in the way.
        UsageError: there are not as many vectors as names.
        BackendError: usearch is not installed.
    """
    with atomic_folder(output, IndexFileError) as folder:
        near: NearVectors | None = None
        tokens = TokensFile(folder / _TOKENS, len(items), content.dtype) if content.output == "tokens" else None
        shape: tuple[int, ...] = ()
        count = 0
        for chunk in chunks:
            count += len(chunk)
            if count > len(items):
                break
            shape = chunk.shape[1:]
            near = near or NearVectors.empty(shape[-1], content.dtype)
            near.add(chunk if tokens is None else directions(chunk[:, 0]))
            if tokens is not None:
                tokens.add(chunk)
        if near is None or count != len(items):
            raise UsageError(f"An index needs a vector for each of its {len(items)} names; got {count}.")
        near.save(folder / _VECTORS)
        if tokens is not None:
            tokens.close()
        write_json(folder / _ITEMS, list(items))
        manifest = IndexManifest(
            **content.to_dict(),
            dim=shape[-1],
            items=len(items),
            bytes_per_item=_bytes_per_item(shape, content.dtype),
            bundle_from_index=_from(output, content.bundle),
            items_folder=str(Path.cwd()),
            items_from_index=_from(output, Path.cwd()),
            files={path.name: hash_file(path) for path in sorted(folder.iterdir())},
        )
        write_json(folder / _MANIFEST, manifest.to_dict())
    return manifest


class SearchIndex:
    """An index opened for search; vectors stay on disk, memory-mapped. Thread-safe.

    Raises:
        IndexFileError: it is missing, foreign, or was changed.
        BackendError: usearch is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_index_manifest(folder)
        for name, expected in self.manifest.files.items():
            if not (folder / name).is_file() or hash_file(folder / name) != expected:
                raise IndexFileError(
                    f"{folder / name} is missing or was changed since the index was built; build it again."
                )
        self._items: list[str] = json.loads((folder / _ITEMS).read_text(encoding="utf-8"))
        self._near = NearVectors.view(folder / _VECTORS, self.manifest.dtype)
        self._multi = MultiVectors.view(self._near, folder / _TOKENS) if self.manifest.output == "tokens" else None

    @property
    def bundle(self) -> Path:
        """The folder of the bundle that built it.

        Raises:
            IndexFileError: it is no longer there.
        """
        tried = self._places(self.manifest.bundle, self.manifest.bundle_from_index)
        for place in tried:
            if (place / BUNDLE_MANIFEST).is_file():
                return place
        raise IndexFileError(
            f"The bundle that the index {self.folder} was built with is not at {' nor at '.join(map(str, tried))}; "
            "name it with --bundle, or another of the same run."
        )

    def item_path(self, row: int) -> Path:
        """The file of an item whose name is a path, wherever this process runs."""
        tried = [
            place / self._items[row]
            for place in self._places(self.manifest.items_folder, self.manifest.items_from_index)
        ]
        return next((path for path in tried if path.is_file()), tried[0])

    def _places(self, absolute: str, relative: str) -> list[Path]:
        """Where something was, and where it is if it was moved with the index."""
        places = [Path(absolute)]
        if relative and (moved := (self.folder / relative).resolve()) != places[0]:
            places.append(moved)
        return places

    def require_space(self, space_id: str, what: str) -> None:
        """Refuse vectors that do not compare with those of the index.

        Args:
            space_id: as `Manifest.space_id` gives it.
            what: whose it is, as the sentence names it.

        Raises:
            IndexFileError: they are of another head, other encoders or another kind of output.
        """
        if space_id != self.manifest.space_id:
            raise IndexFileError(
                f"The index {self.folder} and {what} do not share a space: it holds {self.manifest.output} vectors of "
                f"another head, or of another kind of output ({self.manifest.space_id[:12]} and {space_id[:12]}); "
                "name the bundle that it was built with, or one of the same run, or build it again."
            )

    def search(
        self,
        queries: NDArray[np.float32],
        count: int = 10,
        candidates: int | None = None,
        exact: bool | None = None,
        space_id: str | None = None,
    ) -> list[list[Hit]]:
        """The items most similar to each query, best first.

        Args:
            queries: float32 vectors (queries, dim), or overlapping tokens (queries, tokens, dim), of any modality, k
                and precision.
            count: at most so many items per query.
            candidates: how many items of an index of tokens are put in order by MaxSim; None: ten for each answer,
                and at least a hundred.
            exact: look at every vector, or follow the graph; None looks at every one up to 20,000.
            space_id: of the queries, as their answer says; None where the caller has made sure.

        Raises:
            UsageError: the shape or a count does not fit.
            IndexFileError: the queries are of another space.
        """
        if space_id is not None:
            self.require_space(space_id, "the queries")
        multi = self._multi
        wanted = 2 if multi is None else 3
        if queries.ndim != wanted or queries.shape[-1] != self.manifest.dim or not queries.shape[1]:
            what = "vectors" if multi is None else "tokens"
            raise UsageError(
                f"This index holds {what} of dimension {self.manifest.dim}; got queries of shape {queries.shape}."
            )
        if count < 1 or (candidates is not None and candidates < 1):
            raise UsageError(f"count and candidates are at least 1; got {count} and {candidates}.")
        if multi is None and candidates is not None:
            raise UsageError("candidates are put in order by tokens, and this index has none; leave candidates out.")
        found = []
        for query in queries:
            if multi is None:
                numbers, scores = self._near.search(query, count, exact)
            else:
                numbers, scores = multi.search(query, count, exact, candidates)
            found.append([Hit(self._items[n], float(s)) for n, s in zip(numbers.tolist(), scores, strict=True)])
        return found

    def search_items(
        self,
        embedder: Embedder,
        modality: str,
        items: Sequence[Any],
        count: int = 10,
        k: int | None = None,
        candidates: int | None = None,
    ) -> list[list[Hit]]:
        """Embed raw items as the index needs them, and search for each; see `search` and `Embedder.embed`.

        Args:
            k: register tokens of the queries; None takes the index's. An index of ``concat`` takes no other.

        Raises:
            IndexFileError: the bundle is of another space.
            UsageError, InputError, TokenCountError: as for `Embedder.embed`.
        """
        output = self.manifest.output
        manifest = embedder.bundle.manifest
        self.require_space(manifest.space_id(output), f"the bundle {embedder.bundle.folder}")
        k = min(self.manifest.k, embedder.num_tokens) if k is None else k
        vectors = embedder.embed(modality, items, k, output)
        if output == "tokens":
            vectors = vectors[:, : embedder.num_overlapping]
        return self.search(vectors, count, candidates)


def read_index_manifest(folder: Path) -> IndexManifest:
    """The manifest of an index.

    Raises:
        IndexFileError: the folder is no index, or of another schema.
    """
    try:
        content = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"its format is {content['format']} {content['schema_version']}, not {SCHEMA_VERSION}")
        manifest = IndexManifest.from_dict(content)
        expected = {_VECTORS, _ITEMS, *[_TOKENS] * (manifest.output == "tokens")}
        if set(manifest.files) != expected:
            raise ValueError(f"it names the files {', '.join(manifest.files)}")
        if manifest.output not in INDEX_KINDS or manifest.dtype not in DTYPES:
            raise ValueError(f"it holds {manifest.output} in {manifest.dtype}")
        return manifest
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise IndexFileError(
            f"{folder} is no index that this FluxTalk reads ({reason(error)}); make one with `fluxtalk index build`."
        ) from None


def _from(index: Path, target: str | Path) -> str:
    try:
        return os.path.relpath(target, index.resolve())
    except ValueError:  # on another drive
        return ""


def _bytes_per_item(shape: tuple[int, ...], dtype: str) -> int:
    one = -(-shape[-1] // 8) if dtype == "binary" else shape[-1] * {"float32": 4, "float16": 2, "int8": 1}[dtype]
    # In an index of tokens the first lies in both files.
    return one * (1 if len(shape) == 1 else 1 + shape[0])
