"""Retrieval scores of a head, against brute force from raw tokens."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fluxtalk.datasets.pairs import Items, PairDataset, Split
from fluxtalk.model.checkpoints.stage1 import Stage1
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.scoring.metrics import CUTOFFS
from fluxtalk.scoring.retrieval import retrieval
from fluxtalk.train.features.sources import feature_sources
from fluxtalk.train.results.score import counted_embeddings

Embeddings = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Given:
    """Vectors for every k, as they are."""

    values: NDArray[np.float32]

    @property
    def num_tokens(self) -> int:
        return int(self.values.shape[1])

    def prefix(self, k: int) -> NDArray[np.float32]:
        return self.values[:, k - 1]


def score(embeddings: Embeddings, split: Split) -> dict[str, Any]:
    return retrieval({m: Given(values) for m, values in embeddings.items()}, split)


def _split(seen: list[int] | None = None) -> tuple[Split, Embeddings]:
    """Twelve ids, some with several items, some items not counted; embeddings of three prefixes."""
    generator = np.random.default_rng(3)
    items, embeddings = {}, {}
    for modality in ("image", "text"):
        groups = np.repeat(np.arange(12), generator.integers(1, 4, 12))
        counted = np.ones(len(groups), dtype=bool)
        counted[1:][groups[1:] == groups[:-1]] = generator.random((groups[1:] == groups[:-1]).sum()) < 0.6
        items[modality] = Items(list(range(len(groups))), groups, counted)
        # Whole numbers: scores are exact, and ties are frequent.
        values = generator.integers(-2, 3, (counted.sum(), 3, 4))
        embeddings[modality] = values.astype(np.float32)
    flags = np.zeros(12, dtype=bool)
    flags[seen or []] = True
    return Split("test", tuple(map(str, range(12))), items, flags), embeddings


def _brute_force(
    split: Split, embeddings: Embeddings, source: str, target: str, k: int, cutoff: int, ids: set[int]
) -> float:
    """Sort the gallery with every wrong item before the right ones where they tie, and look."""
    groups = {m: [int(g) for g, c in zip(i.groups, i.counted, strict=True) if c] for m, i in split.items.items()}
    hits = []
    for query, own in zip(embeddings[source][:, k - 1], groups[source], strict=True):
        if own not in ids:
            continue
        ranked = sorted(
            (-float((query * item).sum()), group == own)
            for item, group in zip(embeddings[target][:, k - 1], groups[target], strict=True)
        )
        # Wrong items, several of which may stand before, count; further right ones do not.
        wrong_before = next(
            sum(not right for _, right in ranked[:place]) for place, (_, right) in enumerate(ranked) if right
        )
        hits.append(wrong_before < cutoff)
    return sum(hits) / len(hits)


def test_recall_is_what_brute_force_finds() -> None:
    """Every direction, k and cut-off, with several right answers and many ties, which count against the model."""
    split, embeddings = _split(seen=[0, 5, 7])
    scores = score(embeddings, split)
    everyone, new = set(range(12)), set(range(12)) - {0, 5, 7}
    values = []
    for source, target in itertools.permutations(("image", "text"), 2):
        for k in (1, 2, 3):
            for cutoff in CUTOFFS:
                found = scores["recall"][f"{source}->{target}"][str(k)][str(cutoff)]
                expected = _brute_force(split, embeddings, source, target, k, cutoff, everyone)
                assert found == pytest.approx(expected), (source, k, cutoff)
                values.append(found)
                unseen = scores["recall_unseen"][f"{source}->{target}"][str(k)][str(cutoff)]
                assert unseen == pytest.approx(_brute_force(split, embeddings, source, target, k, cutoff, new))
    assert len(set(values)) > 5
    assert scores["score"] == pytest.approx(np.mean(values))


def test_perfect_and_useless_embeddings() -> None:
    """One-hot by id scores 1 everywhere; a constant, which ties with everything, scores 0."""
    split, _ = _split()
    perfect, constant = {}, {}
    for modality, items in split.items.items():
        groups = items.groups[items.counted]
        perfect[modality] = np.eye(12, dtype=np.float32)[groups][:, None]
        constant[modality] = np.ones((len(groups), 1, 4), dtype=np.float32)
    assert score(perfect, split)["score"] == 1
    assert score(constant, split)["recall"]["text->image"]["1"] == {"1": 0.0, "5": 0.0, "10": 0.0}
    broken = {m: np.full_like(values, np.nan) for m, values in constant.items()}
    assert score(broken, split)["score"] == 0


def test_three_modalities_have_six_directions() -> None:
    split, embeddings = _split()
    split = Split("test", split.ids, {**split.items, "audio": split.items["text"]}, split.seen)
    scores = score({**embeddings, "audio": embeddings["text"]}, split)
    assert set(scores["recall"]) == {
        "image->text", "text->image", "image->audio", "audio->image", "text->audio", "audio->text",
    }  # fmt: skip
    assert scores["recall"]["image->audio"] == scores["recall"]["image->text"]


def test_where_every_id_was_seen_there_is_nothing_unseen() -> None:
    split, embeddings = _split(seen=list(range(12)))
    assert score(embeddings, split)["recall_unseen"] == {"image->text": {}, "text->image": {}}


@pytest.mark.parametrize("encode", ["cache", "online"])
def test_embeddings_are_those_of_the_counted_items(
    stage1: Stage1, table_data: PairDataset, tmp_path: Path, encode: str
) -> None:
    """Items in their order, in evaluation mode; the head comes back in the mode it had."""
    full = table_data.split("test")
    counted = {m: np.arange(len(items)) % 3 != 1 for m, items in full.items.items()}
    split = Split(
        "test", full.ids, {m: Items(i.values, i.groups, counted[m]) for m, i in full.items.items()}, full.seen
    )
    dims = {m: part.spec.dim for m, part in stage1.modalities.items()}
    head = RegisterTokenModule(dims, dim=16, heads=2, dropout=0.5, nested_dropout_rate=0.7).train()
    sources = feature_sources(stage1, table_data, "test", encode, tmp_path, torch.device("cpu"))
    embeddings = counted_embeddings(head, sources, split)
    assert head.training
    head.eval()
    for modality, source in sources.items():
        rows = np.flatnonzero(counted[modality])
        assert embeddings[modality].tokens_BND.shape == (len(rows), 4, 16)
        for position in (0, len(rows) // 2, len(rows) - 1):
            features, mask = source.batch(rows[position : position + 1])
            for k in range(1, 5):
                alone = head({modality: features}, {modality: mask}, k=k).pooled(modality)
                np.testing.assert_allclose(
                    embeddings[modality].prefix(k)[position], alone[0].detach().numpy(), rtol=0, atol=1e-5
                )
