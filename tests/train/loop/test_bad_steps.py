"""Losses, gradients and heads that are not finite: skipped, counted, and never kept as a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fluxtalk.artifacts.run import RunFolder
from fluxtalk.errors import TrainingError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.head.token_head import RegisterOutputs
from fluxtalk.model.losses.register_loss import LossTerms
from fluxtalk.train.engine import Trainer
from fluxtalk.train.loop.step import NextBatch
from tests.train.trainers import CONFIG, make_trainer, registers_of, run_in, same_tensors, state_of


def _spoil(trainer: Trainer, steps: Collection[int]) -> None:
    """Make the loss of some steps (from 0) NaN."""

    def spoil(_head: nn.Module, _inputs: object, outputs: RegisterOutputs) -> RegisterOutputs:
        factor = torch.nan if trainer.state.step in steps else 1.0
        return dataclasses.replace(outputs, tokens={m: t * factor for m, t in outputs.tokens.items()})

    trainer.head.register_forward_hook(spoil)


@pytest.mark.parametrize("at_step", [0, 7])
def test_three_nan_losses_in_a_row_stop_and_name_the_last_good_checkpoint(tmp_path: Path, at_step: int) -> None:
    """The checkpoint that is named is the one before, finite, and untouched; without one, that is said."""
    trainer, folder = make_trainer(), RunFolder(tmp_path)
    _spoil(trainer, range(at_step, 18))
    with pytest.raises(TrainingError, match=f"The loss is nan at step {at_step + 3}, the third") as caught:
        run_in(trainer, tmp_path)
    if at_step == 0:
        assert "no checkpoint was written yet" in str(caught.value)
        assert not folder.last.exists()
        return
    assert f"the last good checkpoint is {folder.last}" in str(caught.value)
    last = load_head(folder.last)
    assert last.progress["step"] == 6
    assert all(tensor.isfinite().all() for tensor in [*last.weights.values(), *last.training_state.values()])
    fresh = make_trainer()
    fresh.restore(last)
    assert run_in(fresh, tmp_path)


def test_a_nan_step_is_skipped_counted_and_said(tmp_path: Path) -> None:
    """Nothing moves in it; two in a row, and a third one later, do not end the run."""
    trainer = make_trainer()
    _spoil(trainer, (4, 5, 8))
    before: dict[int, dict[str, Tensor]] = {}
    step = trainer.step

    def watched(next_batch: NextBatch | None = None) -> tuple[LossTerms, str | None]:
        before[trainer.state.step] = state_of(trainer)
        return step(next_batch)

    trainer.step = watched  # type: ignore[method-assign]
    assert run_in(trainer, tmp_path)
    for skipped in (4, 5, 8):
        assert same_tensors(before[skipped], before[skipped + 1])
    assert not same_tensors(before[6], before[7])
    assert trainer.state.skipped_steps == 3
    assert load_head(RunFolder(tmp_path).last).progress["skipped_steps"] == 3
    log = (tmp_path / "train.log").read_text()
    assert [line.split()[3] for line in log.splitlines() if "skipped" in line] == ["5", "6", "9"]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped_steps"] for r in records if r["kind"] == "train"] == [0, 2, 3, 3, 3, 3]
    assert [r["total"] is None for r in records if r["kind"] == "train"] == [False, True, True, False, False, False]


def test_a_nan_gradient_of_a_finite_loss_is_skipped_too(tmp_path: Path) -> None:
    """In the last step of an epoch, after which nothing tells that the head is good: the checkpoint before is kept."""
    trainer, folder = make_trainer(), RunFolder(tmp_path)

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * (torch.nan if trainer.state.step >= 11 else 1)

    registers_of(trainer).register_hook(spoil)
    with pytest.raises(
        TrainingError, match="gradient's norm is nan at step 14, the third such step in a row; the last"
    ):
        run_in(trainer, tmp_path)
    assert load_head(folder.last).progress["step"] == 6
    assert all(p.isfinite().all() for p in trainer.head.parameters())


def _break_after(trainer: Trainer, last: int) -> None:
    """Let the update of step ``last`` (from 1) give a head that is of no use, as too high a learning rate does."""
    apply = trainer.optimizer_step.apply

    def broken(step: int) -> None:
        apply(step)
        if step + 1 == last:
            nn.init.constant_(registers_of(trainer), torch.inf)

    trainer.optimizer_step.apply = broken  # type: ignore[method-assign]


def test_a_head_that_an_update_broke_replaces_no_checkpoint(tmp_path: Path) -> None:
    """Step 12 has a finite loss, of the head before it; it is validated, and scores best."""
    trainer, folder = make_trainer(dataclasses.replace(CONFIG, checkpoint_every=1)), RunFolder(tmp_path)
    folder.description.write_text("{}")
    _break_after(trainer, 12)
    scores = iter([0.1, 0.9])
    with pytest.raises(TrainingError, match="loss is nan at step 15, the third") as caught:
        run_in(trainer, tmp_path, lambda _head: {"score": next(scores)})
    last, best = load_head(folder.last), load_head(folder.best)
    assert (last.progress["step"], last.progress["bad_in_a_row"]) == (11, 0)
    assert (best.progress["step"], best.progress["best_score"]) == (6, 0.1)
    assert all(tensor.isfinite().all() for tensor in [*last.weights.values(), *best.weights.values()])
    assert f"last good checkpoint is {folder.last}. Begin another run (--init-from {tmp_path}" in str(caught.value)
    for step in (12, 13, 14):
        assert f"no checkpoint of step {step}, whose loss" in folder.log.read_text()


def test_a_broken_head_at_the_end_is_no_result(tmp_path: Path) -> None:
    trainer, folder = make_trainer(dataclasses.replace(CONFIG, eval_every=6)), RunFolder(tmp_path)
    trainer.save(folder)
    _break_after(trainer, 18)
    with pytest.raises(TrainingError, match=r"No head that was validated had a finite loss.*lower --learning-rate"):
        run_in(trainer, tmp_path)
    assert load_head(folder.last).progress["step"] == 0
    assert not folder.best.exists()


def test_looking_whether_a_head_is_sound_changes_nothing() -> None:
    """All dropouts are on, and float16's scaler too: the next step's gradient and update stay what they were."""
    for config in (CONFIG, dataclasses.replace(CONFIG, precision="fp16"), dataclasses.replace(CONFIG, accum_steps=2)):
        trainers = [make_trainer(config) for _ in range(2)]
        for looks, trainer in enumerate(trainers):
            trainer.step_module.train()
            for _ in range(3):
                trainer.step()
                if looks:
                    assert trainer.is_finite()
        assert same_tensors(*(state_of(trainer) for trainer in trainers))
        assert trainers[0].optimizer_step.scaler.state_dict() == trainers[1].optimizer_step.scaler.state_dict()
