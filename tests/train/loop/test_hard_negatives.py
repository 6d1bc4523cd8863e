"""Hard negatives: the nearest ids by a slow reference, margins, the batches they make, resuming, and refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxtalk.artifacts.run import RunFolder
from fluxtalk.errors import UsageError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.train.loop.hard_negatives import HardNegatives, mine
from fluxtalk.train.loop.sampler import ABSENT
from tests.train.in_memory import IDS, in_memory_trainer, three_modalities
from tests.train.trainers import CONFIG, make_trainer, run_in, same_tensors, state_of

MINED = dataclasses.replace(CONFIG, hard_negatives=3)


@pytest.mark.parametrize("aggregation", ["mean", "concat", "maxsim"])
@pytest.mark.parametrize(
    ("margins", "limit"),
    [((0.0, 0.0, 2.0), lambda own: own), ((0.3, 0.05, 2.0), lambda own: own - max(0.3, 0.05 * abs(own))),
     ((0.0, 0.0, 0.2), lambda own: min(own, 0.2))],
)  # fmt: skip
def test_they_are_the_nearest_ids_that_are_no_false_negatives(aggregation, margins, limit) -> None:  # type: ignore[no-untyped-def]
    names = ("hard_negative_margin", "hard_negative_relative_margin", "hard_negative_max_score")
    config = dataclasses.replace(MINED, aggregation=aggregation, **dict(zip(names, margins, strict=True)))
    trainer = make_trainer(config)
    head = trainer.head
    rows = trainer.sampler.first_items()
    found = mine(head, trainer.sources, rows, config)
    assert head.training
    assert found.shape == (IDS, 3)
    head.eval()
    with torch.no_grad():
        every = torch.arange(head.config.num_register_tokens)
        unit = {}
        for modality, source in trainer.sources.items():
            tokens = head.tokens(modality, *source.batch(np.arange(IDS)), every)
            unit[modality] = tokens[:, : head.config.num_overlapping_tokens]
    scores = np.array([[_similarity(unit, i, j, aggregation) for j in range(IDS)] for i in range(IDS)])
    for i in range(IDS):
        allowed = [j for j in range(IDS) if j != i and scores[i, j] <= limit(scores[i, i]) + 1e-6]
        expected = sorted(allowed, key=lambda j: -scores[i, j])[:3]
        kept = [j for j in found[i] if j != ABSENT]
        assert [round(scores[i, j], 4) for j in kept] == [round(scores[i, j], 4) for j in expected]
        assert i not in kept


def _similarity(unit: dict[str, torch.Tensor], i: int, j: int, aggregation: str) -> float:
    """Average over both directions, one number at a time."""
    total = 0.0
    for a, b in (("image", "text"), ("text", "image")):
        x, y = (torch.nn.functional.normalize(t, dim=-1) for t in (unit[a][i], unit[b][j]))
        if aggregation == "mean":
            total += torch.cosine_similarity(unit[a][i].mean(0), unit[b][j].mean(0), dim=0).item()
        elif aggregation == "concat":
            total += torch.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()
        else:
            total += (x @ y.T).amax(dim=1).mean().item()
    return total / 2


def test_each_anchor_has_its_negatives_in_its_batch_and_every_id_is_one_in_turn() -> None:
    sampler = make_trainer(MINED).sampler
    sampler.negatives = (np.arange(IDS)[:, None] + np.arange(1, 4)) % IDS
    sampler.negatives[5, 1:] = ABSENT
    seen: list[int] = []
    for epoch in range(4):
        for step in range(sampler.steps_per_epoch):
            ids = sampler.batch(epoch, step).ids
            assert len(set(ids.tolist())) == len(ids) == 8
            assert np.array_equal(ids, sampler.batch(epoch, step).ids)
            place = (epoch * sampler.steps_per_epoch + step) * 2
            anchors = [int(sampler._order(p // IDS)[p % IDS]) for p in (place, place + 1)]
            for anchor in anchors:
                assert {anchor, *sampler.negatives[anchor].tolist()} - {ABSENT} <= set(ids.tolist())
            seen += anchors
    assert sorted(seen) == list(range(IDS))


def test_a_resumed_run_is_the_same_run_within_an_epoch_and_between_two(tmp_path: Path) -> None:
    config = dataclasses.replace(MINED, checkpoint_every=1)
    whole = make_trainer(config)
    assert run_in(whole, tmp_path / "whole")
    for steps in (7, 6):
        part = make_trainer(config)
        step = part.step

        def stopping(*args, part=part, step=step, steps=steps):  # type: ignore[no-untyped-def]
            if part.state.step == steps - 1:
                part.stop.number = 15
            return step(*args)

        part.step = stopping  # type: ignore[method-assign]
        assert not run_in(part, tmp_path / str(steps))
        assert part.state.step == steps
        resumed = make_trainer(config)
        resumed.restore(load_head(RunFolder(tmp_path / str(steps)).last))
        assert run_in(resumed, tmp_path / str(steps))
        assert same_tensors(state_of(resumed), state_of(whole))
    plain = make_trainer(CONFIG)
    assert run_in(plain, tmp_path / "plain")
    assert not same_tensors(state_of(plain), state_of(whole))


def test_ids_without_a_modality_have_negatives_all_the_same() -> None:
    trainer = in_memory_trainer(dataclasses.replace(MINED, ema_decay=0.0), three_modalities())
    table = mine(trainer.head, trainer.sources, trainer.sampler.first_items(), trainer.config)
    assert ((table >= ABSENT) & (table < IDS)).all()
    assert (table != ABSENT).any(axis=1).mean() > 0.5


def test_what_cannot_be_mined_is_refused() -> None:
    with pytest.raises(UsageError, match="--hard-negatives 8 needs batches of 9 ids or more; one holds 8"):
        make_trainer(dataclasses.replace(MINED, hard_negatives=8))
    trainer = make_trainer(MINED)
    with pytest.raises(UsageError, match="mines in one process, not 2"):
        HardNegatives(MINED, trainer.sampler, trainer.sources, 2)
