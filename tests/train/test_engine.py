"""The training loop: resuming is the same run, what is not finite stops it, and it learns."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fluxtalk.artifacts.run import RunFolder
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.errors import TrainingError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.losses.register_loss import LossTerms
from fluxtalk.train.loop.optimizer_step import adamw, learning_rate_factor
from fluxtalk.train.loop.step import NextBatch
from tests.train.trainers import CONFIG, IDS, make_trainer, registers_of, run_in, same_tensors, score, state_of


@pytest.mark.parametrize("stop_after", [1, 4, 6, 17, 18], ids=lambda n: f"step-{n}")
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path, stop_after: int) -> None:
    """Head, temperature, optimizer and average; stopped within an epoch, at its end, and after the last step."""
    whole = make_trainer()
    assert whole.steps == 18
    assert run_in(whole, tmp_path / "whole")

    stopped = make_trainer()
    step = stopped.step

    def stop(next_batch: NextBatch | None = None) -> tuple[LossTerms, str | None]:
        if stopped.state.step + 1 == stop_after:
            stopped.stop.request(signal.SIGTERM)
        return step(next_batch)

    stopped.step = stop  # type: ignore[method-assign]
    folder = RunFolder(tmp_path / "stopped")
    assert not run_in(stopped, folder.root)
    assert stopped.stop.number == signal.SIGTERM
    assert load_head(folder.last).progress["step"] == stop_after

    torch.manual_seed(1234)
    resumed = make_trainer(dataclasses.replace(CONFIG))
    nn.init.zeros_(registers_of(resumed))
    resumed.restore(load_head(folder.last))
    assert run_in(resumed, folder.root)
    assert same_tensors(state_of(resumed), state_of(whole))
    assert dataclasses.astuple(resumed.state) == dataclasses.astuple(whole.state)
    best, expected = load_head(folder.best), load_head(RunFolder(tmp_path / "whole").best)
    assert best.progress == expected.progress
    assert same_tensors(dict(best.weights), dict(expected.weights))


def test_the_comparison_sees_another_seed(tmp_path: Path) -> None:
    """Different seeds differ, so that the test above can fail."""
    one, other = make_trainer(), make_trainer(dataclasses.replace(CONFIG, seed=1))
    assert run_in(one, tmp_path / "one")
    assert run_in(other, tmp_path / "other")
    assert not same_tensors(state_of(one), state_of(other))


@pytest.fixture
def _heeding_ctrl_c() -> Iterator[None]:
    """Python's own handler of SIGINT, which a background shell starts its jobs without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeding_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    """A real one; and afterwards the process has its own handlers again."""
    before = signal.getsignal(number)
    trainer = make_trainer()

    def validate(head: TokenHead) -> Mapping[str, Any]:
        os.kill(os.getpid(), number)
        return score(head)

    assert not run_in(trainer, tmp_path, validate)
    assert trainer.stop.number == number
    assert load_head(RunFolder(tmp_path).last).progress["step"] == 6
    assert f"stopped by {number.name} after step 6; continue with --resume" in (tmp_path / "train.log").read_text()
    assert signal.getsignal(number) is before


def test_a_checkpoint_of_another_plan_is_not_resumed(tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.save(RunFolder(tmp_path))
    checkpoint = load_head(RunFolder(tmp_path).last)
    longer = make_trainer(dataclasses.replace(CONFIG, epochs=7))
    with pytest.raises(TrainingError, match="planned 18 steps, this run 21"):
        longer.restore(checkpoint)
    with pytest.raises(TrainingError, match="training state is missing"):
        trainer.restore(dataclasses.replace(checkpoint, training_state={}))


def test_training_learns_and_keeps_the_best(tmp_path: Path) -> None:
    """Loss far below chance (ln 8) on what is shared; the best by the score that validation gives."""
    config = dataclasses.replace(CONFIG, epochs=40, dropout=0.0, token_dropout=0.0, feature_dropout=0.0, eval_every=10)
    trainer, folder = make_trainer(config), RunFolder(tmp_path)
    scores = iter([0.1, 0.7, 0.3, 0.2])
    assert run_in(trainer, tmp_path, lambda _head: {"score": next(scores)})
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    losses = [r["contrastive"] for r in records if r["kind"] == "train"]
    assert len(losses) == 40
    assert losses[0] > 1.5
    assert losses[-1] < 0.5
    assert [r["epoch"] for r in records if r["kind"] == "validation"] == [10, 20, 30, 40]
    best, last = load_head(folder.best), load_head(folder.last)
    assert (best.progress["best_epoch"], best.progress["best_score"], best.progress["step"]) == (20, 0.7, 60)
    assert not best.training_state
    assert (last.progress["step"], last.progress["best_epoch"]) == (120, 20)
    assert all(r["implementation"] == "cursor" and r["experiment_id"] for r in records)


def test_the_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    """Against the recursion, step by step; young averages forget faster."""
    trainer = make_trainer()
    expected = registers_of(trainer).detach().clone()
    trainer.step_module.train()
    for step in range(5):
        trainer.step()
        decay = min(0.9, (1 + step + 1) / (10 + step + 1))
        expected = decay * expected + (1 - decay) * registers_of(trainer).detach()
    assert trainer.optimizer_step.average is not None
    torch.testing.assert_close(trainer.optimizer_step.average["registers"], expected)
    evaluated = trainer.evaluated_head()
    assert isinstance(evaluated, RegisterTokenModule)
    torch.testing.assert_close(evaluated.registers.detach(), expected)
    assert not torch.equal(evaluated.registers, registers_of(trainer))
    assert not evaluated.training
    plain = make_trainer(dataclasses.replace(CONFIG, ema_decay=0.0))
    assert plain.evaluated_head() is plain.head


def test_validation_leaves_training_mode_alone(tmp_path: Path) -> None:
    """A head that stayed in evaluation mode would train without dropout."""
    from fluxtalk.train.results.score import counted_embeddings

    trainer = make_trainer(dataclasses.replace(CONFIG, ema_decay=0.0))
    items = {m: Items(list(range(IDS)), np.arange(IDS), np.ones(IDS, dtype=bool)) for m in ("image", "text")}
    split = Split("validation", tuple(map(str, range(IDS))), items, np.zeros(IDS, dtype=bool))
    modes = []

    def validate(head: TokenHead) -> Mapping[str, Any]:
        embeddings = counted_embeddings(head, trainer.sources, split)
        assert all(e.tokens_BND.shape == (IDS, 4, 16) for e in embeddings.values())
        modes.append(head.training)
        return {"score": 0.5}

    assert run_in(trainer, tmp_path, validate)
    assert modes == [True] * 3


def test_gradients_are_clipped() -> None:
    """Clipped to the norm asked for, over head and temperature together."""
    trainer = make_trainer(dataclasses.replace(CONFIG, gradient_clip=0.01))
    trainer.step_module.train()
    trainer.step()
    norms = [p.grad.norm() for p in trainer.step_module.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_temperature_is_clamped_after_each_step() -> None:
    trainer = make_trainer()
    trainer.step_module.train()
    trainer.loss.log_scale.data.fill_(7.0)
    trainer.step()
    assert trainer.loss.log_scale.item() <= math.log(100) + 1e-6


def test_matrices_decay_and_vectors_and_the_temperature_do_not() -> None:
    trainer = make_trainer(dataclasses.replace(CONFIG, weight_decay=0.3))
    groups = adamw(trainer.step_module, trainer.config).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = dict(trainer.step_module.named_parameters())
    assert len(decay) == len(named)
    for name, parameter in named.items():
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0), name
    assert decay[id(trainer.loss.log_scale)] == 0.0


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    """Warm-up over the asked share of steps, then a cosine; the optimizer sees it."""
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert learning_rate_factor(0, 100, 0.0) == 1.0
    trainer = make_trainer()
    seen = []
    for _ in range(18):
        trainer.step()
        seen.append(trainer.optimizer_step.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([CONFIG.learning_rate * learning_rate_factor(s, 18, 0.1) for s in range(18)])


def test_bf16_trains(tmp_path: Path) -> None:
    """Autocast: parameters and loss stay float32."""
    trainer = make_trainer(dataclasses.replace(CONFIG, precision="bf16", epochs=1))
    terms = trainer.gradients(0)
    assert terms.total.dtype == torch.float32
    exact = make_trainer(dataclasses.replace(CONFIG, epochs=1)).gradients(0)
    assert terms.total.item() == pytest.approx(exact.total.item(), rel=0.05)
    assert terms.total.item() != exact.total.item()
    assert run_in(trainer, tmp_path)
    assert all(p.dtype == torch.float32 for p in trainer.head.parameters())


def test_patience_ends_a_run_after_validations_in_vain_and_so_does_resuming(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=40, eval_every=2, patience=3)
    trainer, folder = make_trainer(config), RunFolder(tmp_path)
    scores = iter([0.1, 0.7, 0.3, 0.2, 0.6])
    assert run_in(trainer, tmp_path, lambda _head: {"score": next(scores)})
    assert trainer.state.step == 10 * trainer.sampler.steps_per_epoch
    assert load_head(folder.best).progress["best_epoch"] == 4
    said = "ended after 3 validations without a better one than that of epoch 4"
    assert said in (tmp_path / "train.log").read_text()
    resumed = make_trainer(config)
    resumed.restore(load_head(folder.last))
    assert run_in(resumed, tmp_path)
    assert resumed.state.step == trainer.state.step


def test_fixed_k_train_with_a_temperature_each_and_resume(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, nested_draw="all", k_values="1,2", mean_path="mlp", aggregation="concat")
    trainer = make_trainer(config)
    assert trainer.loss.log_scale.shape == (2,)
    assert run_in(trainer, tmp_path)
    assert trainer.loss.log_scale[0] != trainer.loss.log_scale[1]
    resumed = make_trainer(config)
    resumed.restore(load_head(RunFolder(tmp_path).last))
    assert same_tensors(state_of(resumed), state_of(trainer))
