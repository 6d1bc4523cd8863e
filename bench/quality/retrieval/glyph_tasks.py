"""Tasks on glyphs, which need no download: single characters, and albums of characters that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.icons.albums import Album, AlbumPlan, compose
from bench.icons.tables import Member
from bench.quality.retrieval.sources import InMemoryFeatures, JoinedFeatures
from bench.quality.retrieval.tasks import ITEM, QUERY, WHOLE, Pairs, Task, album_queries, album_task, search_of
from fluxtalk.artifacts.files import hash_json
from fluxtalk.datasets.pairs import Items, PairDataset, Split
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.inputs import Inputs, read_inputs

STAGE1 = Path(__file__).parents[2] / "stage1" / "glyphs.pth"
_SPLITS = ("train", "validation", "test")
_PLAN = AlbumPlan(unseen="things", emoji_only=False, train=6000, validation=400, test=400)


def _inputs(cache_dir: Path, characters: int | None) -> Inputs:
    config = TrainConfig(str(STAGE1), "", "glyphs", cache_dir=str(cache_dir), device="cpu")
    inputs = read_inputs(config, SingleProcess(), torch.device("cpu"))
    return inputs if characters is None else replace(inputs, dataset=first_characters(inputs.dataset, characters))


def first_characters(dataset: PairDataset, count: int) -> PairDataset:
    """Take the first ``count`` ids of every split."""
    return PairDataset(
        dataset.name,
        dataset.modalities,
        {name: _first_ids(split, count) for name, split in dataset.splits.items()},
        hash_json([dataset.content_hash, count]),
    )


def _first_ids(split: Split, count: int) -> Split:
    return Split(
        split.name,
        split.ids[:count],
        {m: _first_items(items, int(np.searchsorted(items.groups, count))) for m, items in split.items.items()},
        split.seen[:count],
    )


def _first_items(items: Items, count: int) -> Items:
    labels = {name: values[:count] for name, values in items.labels.items()}
    return Items(items.values[:count], items.groups[:count], items.counted[:count], labels)


def _hash(inputs: Inputs, *more: object) -> str:
    return hash_json([inputs.dataset.content_hash, inputs.stage1.content_hash(), *map(str, more)])


def glyphs(cache_dir: Path, characters: int | None = None) -> Task:
    """Single characters and their names: the control, where more tokens have nothing more to say."""
    inputs = _inputs(cache_dir, characters)
    train, validation, test = ((inputs.dataset.split(name), inputs.sources(name)) for name in _SPLITS)
    return Task(
        "glyphs",
        "single glyphs",
        Pairs(*train),
        {WHOLE: search_of(*validation)},
        {WHOLE: search_of(*test)},
        _hash(inputs),
    )


def glyph_albums(cache_dir: Path, characters: int | None = None) -> Task:
    """Albums of two to six characters in any face, asked for by names of all, some or one of them.

    An album's features are those of its pictures, and a query's those of the names, one after the other; the names
    stand in another order than the pictures.
    """
    inputs = _inputs(cache_dir, characters)
    parts: dict[str, dict[str, FeatureSource]] = {}
    members: list[Member] = []
    row_of_name: dict[str, int] = {}
    for name in _SPLITS:
        split = inputs.dataset.split(name)
        parts[name] = {m: InMemoryFeatures(source) for m, source in inputs.sources(name).items()}
        texts = split.items[QUERY]
        row_of_name |= {str(text): row for row, text in enumerate(texts.values)}
        spelled = {int(group): str(text) for group, text in zip(texts.groups, texts.values, strict=True)}
        members += [
            Member(split.ids[group], name, str(row), spelled[int(group)], "", True)
            for row, group in enumerate(split.items[ITEM].groups)
        ]
    plan = _PLAN if characters is None else replace(_PLAN, train=4 * characters)
    albums = compose(members, plan)

    def items_of(chosen: Sequence[Album]) -> FeatureSource:
        rows = [[int(member.image) for member in album.members] for album in chosen]
        return JoinedFeatures(parts[chosen[0].split][ITEM], rows)

    def queries_of(asked: Sequence[Sequence[Member]]) -> FeatureSource:
        rows = [[row_of_name[member.name] for member in named] for named in asked]
        return JoinedFeatures(parts[asked[0][0].split][QUERY], rows)

    return album_task(
        "glyph-albums", "glyph albums", album_queries(albums), items_of, queries_of, _hash(inputs, plan, 1)
    )
