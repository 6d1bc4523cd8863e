"""Tasks on icons and emoji, encoded by real pretrained encoders: single things, albums, and scenes.

The data set is that of ``python -m bench.icons build ROOT``; the encoders are those of a stage 1 checkpoint.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.encoders.torchvision_operators import declare_torchvision_operators
from bench.icons.albums import Album, AlbumPlan, compose, join_names
from bench.icons.tables import Member, read_members
from bench.quality.retrieval.sources import JoinedFeatures
from bench.quality.retrieval.tasks import ITEM, QUERY, WHOLE, Pairs, Task, album_queries, album_task, search_of
from fluxtalk.artifacts.files import hash_file, hash_json
from fluxtalk.datasets import PairDataset, load_dataset
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.errors import DataError
from fluxtalk.model.checkpoints.stage1 import Stage1, load_stage1
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.features.sources import CacheOptions, FeatureSource, cached_features, fitted_reductions

_SPLITS = ("train", "validation", "test")
_ALL = "all"
_QUERIES = "?image=image&text=text&id=id&split=split"
ALBUM_FEATURES = CacheOptions(pca=256)
"""Pictures in albums and scenes are read as 256 principal numbers, so that many of them fit in one batch."""


@dataclass(frozen=True)
class IconData:
    """A data set of icons, with the encoders that read it."""

    root: Path
    stage1: Stage1
    cache_dir: Path

    def tasks(self) -> dict[str, Callable[[], Task]]:
        """Name each task on these icons."""
        return {"icons": self.icons, "icon-albums": self.albums, "icon-scenes": self.scenes}

    def icons(self) -> Task:
        """Single icons and emoji, of things that training never saw."""
        table = self._existing("icons-4500.csv")
        dataset = load_dataset(f"{table}{_QUERIES}", self.cache_dir, {ITEM: ITEM, QUERY: QUERY})
        train, validation, test = (
            (dataset.split(name), self._sources(dataset, name, CacheOptions())) for name in _SPLITS
        )
        kinds = {WHOLE: search_of(*validation)}, {WHOLE: search_of(*test)}
        return Task("icons", "single icons", Pairs(*train), *kinds, self._hash(dataset.content_hash))

    def albums(self) -> Task:
        """Albums of two to six emoji in four drawing styles: known things in new combinations.

        An album's features are those of its pictures, one after the other; a query is encoded as the text that it is.
        """
        members = read_members(self.root)
        albums = compose(members, AlbumPlan())
        pictures = {path: row for row, path in enumerate(sorted({m.image for a in albums for m in a.members}))}
        return self._album_task(
            "icon-albums",
            "icon albums",
            albums,
            list(pictures),
            {m.image for a in albums if a.split == "train" for m in a.members},
            lambda source, chosen: JoinedFeatures(source, [[pictures[m.image] for m in a.members] for a in chosen]),
        )

    def scenes(self) -> Task:
        """Scenes: the same albums, pasted at different places and sizes into one picture."""
        table = self._existing("scenes-combinations.csv")
        with table.open(encoding="utf-8", newline="") as file:
            image_of = {row["id"]: row["image"] for row in csv.DictReader(file)}
        albums = [album for album in compose(read_members(self.root), AlbumPlan()) if album.id in image_of]
        pictures = {image_of[album.id]: row for row, album in enumerate(albums)}
        return self._album_task(
            "icon-scenes",
            "icon scenes",
            albums,
            list(pictures),
            {image_of[album.id] for album in albums if album.split == "train"},
            lambda source, chosen: JoinedFeatures(source, [[pictures[image_of[album.id]]] for album in chosen]),
        )

    def _album_task(
        self,
        name: str,
        label: str,
        albums: Sequence[Album],
        pictures: Sequence[str],
        seen: Collection[str],
        join: Callable[[FeatureSource, Sequence[Album]], FeatureSource],
    ) -> Task:
        named = album_queries(albums)
        asked = [members for part in named.values() for kind in part.kinds.values() for _, members in kind]
        texts = {text: row for row, text in enumerate(sorted({_text(members) for members in asked}))}
        dataset = self._parts(name, pictures, seen, list(texts))
        sources = self._sources(dataset, _ALL, ALBUM_FEATURES)

        def queries_of(chosen: Sequence[Sequence[Member]]) -> FeatureSource:
            return JoinedFeatures(sources[QUERY], [[texts[_text(members)]] for members in chosen])

        return album_task(
            name,
            label,
            named,
            lambda chosen: join(sources[ITEM], chosen),
            queries_of,
            self._hash(dataset.content_hash, ALBUM_FEATURES),
        )

    def _parts(self, name: str, pictures: Sequence[str], seen: Collection[str], texts: Sequence[str]) -> PairDataset:
        """Make a data set of everything to encode, beside the pictures that a reduction may be fitted to.

        Its pairs mean nothing.
        """
        splits = {
            split: Split(split, ("part",), {ITEM: self._pictures(chosen), QUERY: _ungrouped(texts)}, np.zeros(1, bool))
            for split, chosen in (("train", [path for path in pictures if path in seen]), (_ALL, pictures))
        }
        content = hash_json([name, hash_file(self._existing("icons.csv")), list(pictures), list(texts)])
        return PairDataset(name, (ITEM, QUERY), splits, content)

    def _pictures(self, paths: Sequence[str]) -> Items:
        return _ungrouped([str(self.root / path) for path in paths])

    def _sources(self, dataset: PairDataset, split: str, options: CacheOptions) -> Mapping[str, FeatureSource]:
        device = torch.device("cpu")
        # Texts stay as they are.
        pictures = replace(self.stage1, modalities={ITEM: self.stage1.modalities[ITEM]})
        reductions = fitted_reductions(pictures, dataset, options, self.cache_dir, device, SingleProcess())
        return {
            m: cached_features(
                self.stage1, dataset, split, m, self.cache_dir, device, CacheOptions(), reductions.get(m)
            )
            for m in (ITEM, QUERY)
        }

    def _existing(self, name: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise DataError(
                f"{path} does not exist; build the data set first: python -m bench.icons build {self.root}."
            )
        return path

    def _hash(self, *what: object) -> str:
        return hash_json([self.stage1.content_hash(), *map(str, what)])


def _text(members: Iterable[Member]) -> str:
    return join_names([member.name for member in members])


def _ungrouped(values: Sequence[str]) -> Items:
    return Items(values, np.zeros(len(values), dtype=np.int64), np.ones(len(values), dtype=bool))


def read_icons(root: Path, stage1: Path, cache_dir: Path) -> IconData:
    """Open a data set of icons and the encoders that read it."""
    declare_torchvision_operators()  # timm imports torchvision
    return IconData(root, load_stage1(stage1), cache_dir)
