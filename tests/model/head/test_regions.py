"""Regions: a mean for each register, by what features hold and where they are."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxtalk.config import Grid, HeadConfig, read_grids
from fluxtalk.errors import UsageError
from fluxtalk.model.head.mean_path import MeanPath
from fluxtalk.model.head.regions import Regions
from fluxtalk.model.head.registers import RegisterTokenModule

DIMS = {"image": 10, "text": 7}


def _head(**settings: Any) -> RegisterTokenModule:
    torch.manual_seed(0)
    sizes = {"dim": 16, "heads": 2, "num_register_tokens": 8, "num_overlapping_tokens": 8, "token_dim": 6}
    return RegisterTokenModule(DIMS, **{**sizes, "mean_path": "mlp", "regions": "image=3x3", **settings}).eval()


def _regions(head: RegisterTokenModule, modality: str) -> Regions:
    found = cast(MeanPath, head.mean_path[modality]).regions
    assert found is not None
    return found


def test_a_token_is_the_map_of_its_register_s_own_mean() -> None:
    """Against loops over items, registers and features, with the gate of attention closed."""
    head = _head()
    path = cast(MeanPath, head.mean_path["image"])
    regions = _regions(head, "image")
    assert regions.places is not None
    with torch.no_grad():
        path.gate.zero_()
        regions.query.add_(torch.randn_like(regions.query))
    features, mask = torch.randn(4, 9, 10), torch.rand(4, 9) < 0.7
    found = head({"image": features}, {"image": mask}).tokens["image"]
    normalized = cast(nn.LayerNorm, head.feature_norm["image"])(features)
    hidden = cast(nn.Linear, path.hidden[0])
    for item in range(4):
        seen = mask[item].nonzero()[:, 0].tolist()
        for register in range(8):
            scores = torch.stack(
                [
                    4 / 10**0.5 * normalized[item, place] @ regions.query[register] + regions.places[register, place]
                    for place in seen
                ]
            )
            mean = sum(weight * normalized[item, place] for weight, place in zip(scores.softmax(0), seen, strict=True))
            expected = path.output.maps[0](F.gelu(hidden(cast(Tensor, mean))))
            torch.testing.assert_close(found[item, register], expected, rtol=0, atol=1e-5)


def test_registers_begin_with_the_whole_and_with_windows_that_are_spread_over_the_grid() -> None:
    regions = Regions(8, 10, Grid(7, 7, before=1))
    weights = regions.weights(torch.zeros(1, 8, 50), torch.ones(1, 50, dtype=torch.bool), torch.arange(8))[0]
    torch.testing.assert_close(weights[0], torch.full((50,), 1 / 50), rtol=0, atol=1e-7)
    peaks = weights[1:, 1:].argmax(dim=1)
    assert len(set(peaks.tolist())) == 7
    row, column = peaks // 7, peaks % 7
    assert row.max() - row.min() >= 4
    assert column.max() - column.min() >= 4
    for register, peak in enumerate(peaks.tolist(), start=1):
        window = weights[register, 1:].reshape(7, 7)
        across, down = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
        near = ((across - peak // 7).abs() <= 2) & ((down - peak % 7).abs() <= 2)
        assert window[near].sum() > 0.5  # of at most 25 of the 49 places


def test_without_a_grid_registers_begin_nearly_as_the_mean_and_differ() -> None:
    head = _head(regions="image=3x3")
    regions = _regions(head, "text")
    assert regions.places is None
    weights = regions(torch.randn(2, 10, 7), torch.ones(2, 10, dtype=torch.bool), torch.arange(8))
    assert (weights - 0.1).abs().max() < 0.05
    assert (weights[:, 1] - weights[:, 2]).abs().max() > 1e-4


def test_a_place_moves_only_the_tokens_whose_register_looks_there() -> None:
    """What the first registers read does not depend on later ones, nor on their places."""
    head = _head()
    features = torch.randn(2, 9, 10)
    before = head({"image": features}).tokens["image"]
    with torch.no_grad():
        places = _regions(head, "image").places
        assert places is not None
        places[5] += torch.randn(9)
    changed = (head({"image": features}).tokens["image"] - before).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.tolist() == [register == 5 for register in range(8)]


def test_attention_is_where_each_token_looked() -> None:
    """The first token's attention, and the regions of the others, whose features alone move them."""
    head = _head()
    features, mask = torch.randn(1, 9, 10), torch.ones(1, 9, dtype=torch.bool)
    mask[0, 3] = False
    tokens, attention = head.tokens_and_attention("image", features, mask, torch.arange(4))
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(1, 4))
    assert attention[..., 3].abs().max() == 0
    regions = _regions(head, "image")
    with torch.no_grad():
        assert regions.places is not None
        regions.places[2] = torch.nn.functional.one_hot(torch.tensor(7), 9) * 50.0
    sharp, moved = head.tokens_and_attention("image", features, mask, torch.arange(4))[1], features.clone()
    assert sharp[0, 2, 7] > 0.999
    torch.testing.assert_close(sharp[0, [0, 1, 3]], attention[0, [0, 1, 3]])
    moved[0, 5] = torch.randn(10)
    before = head.tokens("image", features, mask, torch.arange(4))
    change = (head.tokens("image", moved, mask, torch.arange(4)) - before).abs().amax(dim=(0, 2))
    assert change[2] < 1e-5 < change[1]
    torch.testing.assert_close(before[:, :2], tokens[:, :2])


def test_grids_are_read_as_they_are_written() -> None:
    grids = {"image": Grid(14, 14, before=1), "audio": Grid(1, 50)}
    text = ",".join(f"{name}={grid}" for name, grid in grids.items())
    assert text == "image=1+14x14,audio=1x50"
    assert read_grids(text) == grids
    assert (grids["image"].places, read_grids("")) == (197, {})


@pytest.mark.parametrize(
    "text", ["image", "image=7", "image=0x7", "image=7x7,image=7x7", "=7x7", "image=7x7,", "auto", "image=9999x9999"]
)
def test_a_grid_that_is_none_is_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"grid of features once, as image=7x7 or image=1\+14x14, or are found"):
        read_grids(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"regions": "sound=7x7", "mean_path": "mlp"}, "got sound"),
        ({"regions": "image=7x7"}, "set mean_path to linear or mlp"),
    ],
)
def test_regions_need_a_modality_and_a_mean_path(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        HeadConfig(DIMS, **settings)
