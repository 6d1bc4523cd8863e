"""The search index: one vector for each item, or its tokens, and the bundle that made them.

::

    INDEX/
      index.json        the manifest: bundle, space, modality, kind of output, k, number format, hashes
      items.json        names of the items, by row
      vectors.usearch   one vector for each item, in which a search begins
      tokens.npy        (items, tokens, dim), only in an index of tokens: they put candidates in order
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fluxtalk.arrays import BITS_PER_NUMBER, Array, vector_bytes
from fluxtalk.artifacts.bundle import MANIFEST as BUNDLE_MANIFEST
from fluxtalk.artifacts.bundle import Bundle
from fluxtalk.artifacts.files import hash_file, write_json
from fluxtalk.artifacts.json_files import read_json, read_object
from fluxtalk.config import StrictConfig
from fluxtalk.errors import IndexFileError, UsageError, reason
from fluxtalk.field_types import shown
from fluxtalk.tokens import POOLED, SEARCHED_KINDS, TOKENS, TokenLayout

FORMAT = "fluxtalk.index"
SCHEMA_VERSION = 2
_MOST_BYTES_OF_NAMES = 4 << 30


@dataclass(frozen=True)
class IndexSpec(StrictConfig):
    """Description of the vectors of an index."""

    bundle: str
    """Folder of the bundle that embedded them: a hint, which `space_id` verifies."""
    space_id: str
    """See `Manifest.space_id`."""
    modality: str
    output: str
    """One of `SEARCHED_KINDS`: one vector for each item (complementary tokens side by side), or, for ``tokens``, its
    overlapping tokens."""
    k: int
    """Register tokens that were computed."""
    dtype: str = "float32"
    """Number format in which they are stored, one of `fluxtalk.runtime.vectors.DTYPES`."""
    token_dim: int = 0
    """Numbers to which each token was cut; 0 is none."""

    def __post_init__(self) -> None:
        if self.output not in SEARCHED_KINDS:
            raise UsageError(f"An index holds {', '.join(SEARCHED_KINDS)}; got {self.output!r}.")
        if self.dtype not in BITS_PER_NUMBER:
            raise UsageError(f"dtype is one of {', '.join(BITS_PER_NUMBER)}; got {self.dtype!r}.")
        if type(self.token_dim) is not int or self.token_dim < 0:
            raise UsageError(f"token_dim is an integer of at least 0; got {self.token_dim!r}.")

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        modality: str,
        output: str = POOLED,
        k: int | None = None,
        dtype: str = "float32",
        dimensions: int | None = None,
    ) -> IndexSpec:
        """The vectors of one modality of a bundle.

        Raises:
            UsageError, TokenCountError: as for `TokenLayout.select`.
        """
        manifest = bundle.manifest
        chosen = manifest.layout.select(k, output, dimensions)
        size = chosen.layout.dim if chosen.layout.dim < manifest.dim else 0
        space = manifest.space_id(chosen.output, size)
        return cls(str(bundle.folder.resolve()), space, modality, chosen.output, chosen.k, dtype, size)

    def narrowed(self, layout: TokenLayout) -> TokenLayout:
        """Cut the register tokens of a bundle as these were cut."""
        return layout.narrowed(self.token_dim) if self.token_dim else layout


@dataclass(frozen=True, kw_only=True)
class IndexManifest(IndexSpec):
    """Everything an index says about itself."""

    dim: int
    """Numbers of a vector, or of one token."""
    items: int
    """Number of items."""
    bytes_per_item: int
    """Bytes of an item's vectors; the graph of near neighbors comes on top."""
    files: dict[str, str]
    """File name to SHA-256."""
    bundle_from_index: str = ""
    """Path of the bundle relative to the index, which holds if both were moved together."""
    items_folder: str = ""
    """Folder to which paths among the items' names are relative."""
    items_from_index: str = ""
    """Path of that folder relative to the index."""
    left_out: int = 0
    """Number of items that were left out because they cannot be used."""
    ef_search: int = 0
    """Candidates that a search of the graph holds; 0 is usearch's own number: none was chosen."""
    graph_recall: float = 1.0
    """Share of the nearest ten that the graph then found, of golden items of other modalities."""
    format: str = FORMAT
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("k", "dim", "items", "bytes_per_item"):
            value = getattr(self, name)
            if not 1 <= value < 1 << 31:
                raise UsageError(f"{name} is a positive integer of at most 31 bits; got {shown(value)}.")
        if not 0 <= self.ef_search < 1 << 20:
            raise UsageError(f"ef_search is an integer from 0 to {(1 << 20) - 1:,}; got {shown(self.ef_search)}.")


@dataclass(frozen=True)
class IndexFiles:
    """Paths of an index's files."""

    folder: Path

    @property
    def manifest(self) -> Path:
        """`IndexManifest` in JSON."""
        return self.folder / "index.json"

    @property
    def items(self) -> Path:
        """Names of the items, in JSON."""
        return self.folder / "items.json"

    @property
    def vectors(self) -> Path:
        """One vector for each item, as usearch saves them."""
        return self.folder / "vectors.usearch"

    @property
    def tokens(self) -> Path:
        """Stored tokens (items, tokens, dim), only in an index of tokens."""
        return self.folder / "tokens.npy"

    def hashed(self, output: str) -> list[Path]:
        """The files that the manifest of an index of such vectors names."""
        return [self.items, *[self.tokens] * (output == TOKENS), self.vectors]


@dataclass(frozen=True)
class StoredIndex:
    """A verified index on disk."""

    folder: Path
    manifest: IndexManifest
    items: Sequence[str]
    """Names of the items, by row."""

    @property
    def files(self) -> IndexFiles:
        """Paths of its files."""
        return IndexFiles(self.folder)

    @property
    def bundle(self) -> Path:
        """The folder of the bundle that built it.

        Raises:
            IndexFileError: it is no longer there.
        """
        tried = self._candidates(self.manifest.bundle, self.manifest.bundle_from_index)
        for folder in tried:
            if (folder / BUNDLE_MANIFEST).is_file():
                return folder
        raise IndexFileError(
            f"The bundle that the index {self.folder} was built with is not at {' nor at '.join(map(str, tried))}; "
            "name it with --bundle, or another of the same run."
        )

    def item_path(self, row: int) -> Path:
        """The file of an item whose name is a path, whatever the working directory is."""
        folders = self._candidates(self.manifest.items_folder, self.manifest.items_from_index)
        tried = [folder / self.items[row] for folder in folders]
        return next((path for path in tried if path.is_file()), tried[0])

    def item_below(self, row: int, roots: Sequence[Path]) -> Path | None:
        """Find the file of an item, if it is below one of some folders when every link is followed; else None.

        An index may be a stranger's, and list any path: the folders, and not the index, say what may be read.

        Args:
            row: number of the item.
            roots: folders, as `Path.resolve` gives them.
        """
        for folder in self._candidates(self.manifest.items_folder, self.manifest.items_from_index):
            try:
                path = (folder / self.items[row]).resolve(strict=True)
            except (OSError, RuntimeError, ValueError):  # not there, a ring of links, a name that no file has
                continue
            if any(path.is_relative_to(root) for root in roots) and path.is_file():
                return path
        return None

    def read_tokens(self) -> Array:
        """The tokens of an index of tokens, (items, tokens, dim) in its number format; memory-mapped.

        Raises:
            IndexFileError: the file cannot be read, or does not hold what the manifest says.
        """
        try:
            tokens: Array = np.load(self.files.tokens, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise IndexFileError(
                f"{self.files.tokens} cannot be read ({reason(error)}); build the index again."
            ) from None
        manifest = self.manifest
        width = -(-manifest.dim // 8) if manifest.dtype == "binary" else manifest.dim
        number = np.dtype("uint8" if manifest.dtype == "binary" else manifest.dtype)
        count = manifest.bytes_per_item // vector_bytes(manifest.dim, manifest.dtype) - 1
        if (tokens.dtype, tokens.shape) != (number, (manifest.items, count, width)) or count < 1:
            raise IndexFileError(
                f"{self.files.tokens} holds {tokens.dtype} of shape {tokens.shape}, and its index says {number} of "
                f"shape {(manifest.items, count, width)}; build the index again."
            )
        return tokens

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

    def _candidates(self, absolute: str, relative: str) -> list[Path]:
        """List where a folder was, and where it is if it was moved together with the index."""
        folders = [Path(absolute)]
        if relative and (moved := (self.folder / relative).resolve()) != folders[0]:
            folders.append(moved)
        return folders


def write_index_manifest(
    folder: Path,
    final: Path,
    spec: IndexSpec,
    items: Sequence[str],
    shape: Sequence[int],
    left_out: int = 0,
    ef_search: int = 0,
    graph_recall: float = 1.0,
) -> IndexManifest:
    """Write the items' names and, last of all files, the manifest.

    Args:
        folder: holds the vectors, and the tokens if there are any.
        final: the folder that it becomes, from which relative paths are taken.
        shape: of one item's vectors: (dim,), or (tokens, dim).
        left_out: number of items that could not be used.
        ef_search: candidates that a search of the graph holds; 0 is usearch's own number.
        graph_recall: share of the nearest ten that the graph finds with them.
    """
    files = IndexFiles(folder)
    write_json(files.items, list(items))
    # In an index of tokens the first is stored twice: it is also the vector in which a search begins.
    vectors = 1 if len(shape) == 1 else 1 + shape[0]
    manifest = IndexManifest(
        **spec.to_dict(),
        dim=shape[-1],
        items=len(items),
        left_out=left_out,
        ef_search=ef_search,
        graph_recall=round(graph_recall, 4),
        bytes_per_item=vectors * vector_bytes(shape[-1], spec.dtype),
        bundle_from_index=_relative(spec.bundle, final),
        items_folder=str(Path.cwd()),
        items_from_index=_relative(Path.cwd(), final),
        files={path.name: hash_file(path) for path in files.hashed(spec.output)},
    )
    write_json(files.manifest, manifest.to_dict())
    return manifest


def read_index_manifest(folder: Path) -> IndexManifest:
    """Read the manifest of an index.

    Raises:
        IndexFileError: the folder is not an index, or is of another schema.
    """
    files = IndexFiles(folder)
    try:
        content = read_object(files.manifest)
        if content["format"] != FORMAT or content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"its format is {content['format']} {content['schema_version']}, not {SCHEMA_VERSION}")
        manifest = IndexManifest.from_dict(content)
        if set(manifest.files) != {path.name for path in files.hashed(manifest.output)}:
            raise ValueError(f"it names the files {', '.join(manifest.files)}")
        return manifest
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise IndexFileError(
            f"{folder} is not an index that this FluxTalk reads ({reason(error)}); "
            "make one with `fluxtalk index build`."
        ) from None


def read_index(folder: Path) -> StoredIndex:
    """Open an index and verify that its files are those it was written with.

    Raises:
        IndexFileError: it is missing, foreign, from another schema, or a file is missing or was changed.
    """
    manifest = read_index_manifest(folder)
    for name, expected in manifest.files.items():
        if not (folder / name).is_file() or hash_file(folder / name) != expected:
            raise IndexFileError(
                f"{folder / name} is missing or was changed since the index was built; build it again."
            )
    return StoredIndex(folder, manifest, _read_items(IndexFiles(folder).items, manifest.items))


def _read_items(path: Path, count: int) -> list[str]:
    try:
        items = read_json(path, _MOST_BYTES_OF_NAMES)
    except (OSError, ValueError) as error:
        raise IndexFileError(f"{path} cannot be read ({reason(error)}); build the index again.") from None
    if not isinstance(items, list) or len(items) != count or not all(isinstance(item, str) for item in items):
        raise IndexFileError(f"{path} is not a list of {count:,} names, as its index says; build the index again.")
    return items


def _relative(target: str | Path, index: Path) -> str:
    try:
        return os.path.relpath(target, index.resolve())
    except ValueError:  # on another drive
        return ""
