"""Listing of a cache folder: every feature cache, its size, and whether it is intact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fluxtalk.artifacts.cache import MANIFEST, count_shards, features_folder
from fluxtalk.errors import ArtifactError
from fluxtalk.train.features.cached import CachedFeatures


@dataclass(frozen=True)
class CacheEntry:
    """One folder under ``features``."""

    name: str
    bytes: int
    content: str
    """Description of the content."""
    state: str
    """``intact`` (checksums hold), ``complete`` (sizes hold), ``unfinished`` or ``damaged``."""
    problem: str | None = None
    """Sentence that names the damage."""

    def line(self) -> str:
        """Format the entry."""
        return f"{self.name:<40} {self.bytes / 1e6:>10.1f} MB  {self.state:<10}  {self.problem or self.content}"


def report_caches(cache_dir: Path, verify: bool) -> Iterator[CacheEntry]:
    """Inspect every feature cache; with ``verify``, every byte of it."""
    folder = features_folder(cache_dir)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            yield _entry(path, verify)


def _entry(path: Path, verify: bool) -> CacheEntry:
    size = sum(file.stat().st_size for file in path.iterdir())
    if not (path / MANIFEST).is_file():
        return CacheEntry(
            path.name, size, f"{count_shards(path)} shards; building it again goes on from there", "unfinished"
        )
    try:
        manifest = CachedFeatures(path, torch.device("cpu"), verify=verify).manifest
    except ArtifactError as error:
        return CacheEntry(path.name, size, "", "damaged", str(error))
    reduced = "".join(
        f", {name} {manifest.reduction[name]}"
        for name, off in (("pool", 1), ("pca", 0))
        if manifest.reduction[name] != off
    )
    content = f"{manifest.items:,} items, {manifest.vectors:,} vectors of {manifest.dim} {manifest.key.dtype}{reduced}"
    return CacheEntry(path.name, size, content, "intact" if verify else "complete")
