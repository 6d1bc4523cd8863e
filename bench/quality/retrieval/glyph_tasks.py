"""Tasks on glyphs, which need no download: single characters, and albums of characters that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bench.icons.albums import Album, AlbumPlan, compose
from bench.icons.tables import Member
from bench.quality.retrieval.sources import InMemoryFeatures, JoinedFeatures
from bench.quality.retrieval.tasks import ITEM, QUERY, WHOLE, Pairs, Task, album_queries, album_task, search_of
from fluxtalk.artifacts.files import hash_json
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.inputs import Inputs, read_inputs

STAGE1 = Path(__file__).parents[2] / "stage1" / "glyphs.pth"
_SPLITS = ("train", "validation", "test")
_PLAN = AlbumPlan(unseen="things", emoji_only=False, train=6000, validation=400, test=400)


def _inputs(cache_dir: Path) -> Inputs:
    config = TrainConfig(str(STAGE1), "", "glyphs", cache_dir=str(cache_dir), device="cpu")
    return read_inputs(config, SingleProcess(), torch.device("cpu"))


def _hash(inputs: Inputs, *more: object) -> str:
    return hash_json([inputs.dataset.content_hash, inputs.stage1.content_hash(), *map(str, more)])


def glyphs(cache_dir: Path) -> Task:
    """Single characters and their names: the control, where more tokens have nothing more to say."""
    inputs = _inputs(cache_dir)
    train, validation, test = ((inputs.dataset.split(name), inputs.sources(name)) for name in _SPLITS)
    return Task(
        "glyphs",
        "single glyphs",
        Pairs(*train),
        {WHOLE: search_of(*validation)},
        {WHOLE: search_of(*test)},
        _hash(inputs),
    )


def glyph_albums(cache_dir: Path) -> Task:
    """Albums of two to six characters in any face, asked for by names of all, some or one of them.

    An album's features are those of its pictures, and a query's those of the names, one after the other; the names
    stand in another order than the pictures.
    """
    inputs = _inputs(cache_dir)
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
    albums = compose(members, _PLAN)

    def items_of(chosen: Sequence[Album]) -> FeatureSource:
        rows = [[int(member.image) for member in album.members] for album in chosen]
        return JoinedFeatures(parts[chosen[0].split][ITEM], rows)

    def queries_of(asked: Sequence[Sequence[Member]]) -> FeatureSource:
        rows = [[row_of_name[member.name] for member in named] for named in asked]
        return JoinedFeatures(parts[asked[0][0].split][QUERY], rows)

    return album_task(
        "glyph-albums", "glyph albums", album_queries(albums), items_of, queries_of, _hash(inputs, _PLAN, 1)
    )
