"""The style probe's measures on vectors whose answer is known, and its path from a table to a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.quality.style_data import MODALITY, SomeRows, StyledPictures, read_styles, style_data
from bench.quality.style_probe import EMOJI, fitted_maps, leak, mean_features, measure, style_hits
from fluxtalk.arrays import Floats
from fluxtalk.datasets.pairs import Split
from fluxtalk.errors import DataError
from fluxtalk.model.encoders import Features
from tests.train.in_memory import IDS, InMemory, items_of

THINGS = np.repeat(np.arange(30), 4)
STYLES = np.array(EMOJI * 30)


def _vectors(by_style: float, by_thing: float) -> Floats:
    generator = np.random.default_rng(0)
    style, thing = generator.standard_normal((2, 30, 16))
    which = np.tile(np.arange(4), 30)
    noise = 0.01 * generator.standard_normal((120, 16))
    vectors: Floats = (by_style * style[which] + by_thing * thing[THINGS] + noise).astype(np.float32)
    return vectors


def test_vectors_of_style_and_of_things_are_told_apart() -> None:
    style, thing = _vectors(1, 0), _vectors(0, 1)
    assert style_hits(style, STYLES, THINGS).mean() == 1
    assert leak(thing, THINGS) == 1
    assert leak(style, THINGS) < 0.15
    assert style_hits(thing, STYLES, THINGS).mean() < 0.5
    found = measure(style, StyledPictures(InMemory(THINGS % IDS, 0), THINGS, STYLES), thing)
    assert found["emoji"] == found["all"]
    assert found["all"]["few_labels"] == 1
    assert found["all"]["things"] == 30
    mean, low, high = found["all"]["above_mean_features"]
    assert 0.4 < low < mean < high


def test_linear_maps_of_seen_things_read_the_style_of_others() -> None:
    vectors = np.concatenate([_vectors(0, 3), _vectors(0.2, 0)], axis=1)

    class Rows(InMemory):
        """One vector of each item."""

        def __len__(self) -> int:
            return len(vectors)

        def batch(self, rows: NDArray[np.int64]) -> Features:
            return Features(torch.from_numpy(vectors[rows])[:, None], torch.ones(len(rows), 1, dtype=torch.bool))

    source = Rows(THINGS % IDS, 0)
    seen, unseen = np.arange(80), np.arange(80, 120)
    base = mean_features(SomeRows(source, unseen))
    fitted = fitted_maps(StyledPictures(SomeRows(source, seen), THINGS[seen], STYLES[seen]), base)
    assert set(fitted) == {"ridge", "discriminant"}
    assert style_hits(base, STYLES[unseen], THINGS[unseen]).mean() < 0.9
    assert leak(base, THINGS[unseen]) == 1
    for name, mapped in fitted.items():
        assert style_hits(mapped, STYLES[unseen], THINGS[unseen]).mean() > 0.9, name
        assert leak(mapped, THINGS[unseen]) < 0.5, name


def test_held_out_things_are_in_no_training_pair_and_rows_are_the_same_items() -> None:
    groups = {MODALITY: [i // 2 for i in range(2 * IDS)], "text": list(range(IDS))}

    class Square(InMemory):
        """Every item has fourteen vectors, as pictures have 49."""

        def batch(self, rows: NDArray[np.int64]) -> Features:
            values = super().batch(rows)[0].repeat(1, 3, 1)[:, :14]
            return Features(values, torch.ones(values.shape[:2], dtype=torch.bool))

    sources = {MODALITY: Square(np.array(groups[MODALITY]), 0), "text": InMemory(np.array(groups["text"]), 1)}
    split = Split(
        "train", tuple(map(str, range(IDS))), {m: items_of(g) for m, g in groups.items()}, np.zeros(IDS, bool)
    )
    # Features of the first forty pictures alone: the last of their things may be cut, and is left out.
    data = style_data(split, sources, np.array(["a", "b"] * 20), 4)
    assert sorted(set(data.held_out.things)) == [0, 4, 8, 12, 16]
    assert not set(data.held_out.things) & set(data.seen.things)
    assert list(data.names["text"][1]) == [0, 4, 8, 12, 16]
    assert data.split.ids == tuple(str(i) for i in range(19) if i % 4)
    assert len(data.pictures) == len(data.held_out.styles) == 10
    assert list(data.held_out.styles[:2]) == ["a", "b"]
    texts, known = data.sources["text"].batch(np.array([0, -1]))
    features, mask = sources["text"].batch(np.array([1]))
    torch.testing.assert_close(texts[0, 0], features[0, mask[0]].mean(dim=0))
    assert known.tolist() == [[True], [False]]
    assert data.sources[MODALITY].batch(np.array([0, 1]))[0].shape == (2, 7, 4)
    assert not data.sources[MODALITY].batch(np.array([-1]))[1].any()


def test_styles_are_read_from_the_table(tmp_path: Path) -> None:
    table = tmp_path / "icons.csv"
    table.write_text("id,image,style\na,p/1.png,apple\na,p/2.png,google\n")
    name = f"{table}?image=image&text=text"
    assert list(read_styles(name, [tmp_path / "p" / "2.png", tmp_path / "p" / "1.png"])) == ["google", "apple"]
    with pytest.raises(DataError, match="no column 'drawn'"):
        read_styles(name, [], "drawn")
    with pytest.raises(DataError, match="names no style of"):
        read_styles(name, [tmp_path / "other.png"])
