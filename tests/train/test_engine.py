"""The training loop: resuming is the same run, what is not finite stops it, and it learns."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fluxtalk.artifacts.files import Identity
from fluxtalk.artifacts.run import RunFolder
from fluxtalk.datasets.pairs import Items, Split
from fluxtalk.errors import TrainingError
from fluxtalk.model.checkpoints.head import load_head
from fluxtalk.model.encoders import Features
from fluxtalk.model.head.registers import RegisterTokenModule
from fluxtalk.model.head.token_head import RegisterOutputs, TokenHead
from fluxtalk.model.losses.register_loss import LossTerms
from fluxtalk.model.process_group import SingleProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.features.sources import FeatureSource
from fluxtalk.train.loop.optimizer_step import adamw, learning_rate_factor
from fluxtalk.train.loop.sampler import PairSampler
from fluxtalk.train.loop.step import NextBatch
from fluxtalk.train.records.log import RunLog

IDS, LENGTH, DIM = 24, 5, 6


pytestmark = pytest.mark.usefixtures("one_thread")


class Correlated:
    """Features of both modalities that share what an id is."""

    dim = DIM

    def __init__(self, seed: int) -> None:
        shared = np.random.default_rng(0).standard_normal((IDS, 1, DIM))
        own = np.random.default_rng(seed).standard_normal((IDS, LENGTH, DIM))
        self._values = torch.from_numpy((shared + 0.3 * own).astype(np.float32))

    def __len__(self) -> int:
        return IDS

    def batch(self, rows: NDArray[np.int64]) -> Features:
        lengths = torch.from_numpy(rows % LENGTH + 1)
        return Features(self._values[rows], torch.arange(LENGTH) < lengths[:, None])


CONFIG = TrainConfig(
    "stage1.pth", "runs", "run", batch_size=8, epochs=6, dim=16, heads=2, depth=2, self_attention=True, dropout=0.2,
    feature_dropout=0.1, token_dropout=0.2, ema_decay=0.9, eval_every=2, learning_rate=3e-3, device="cpu",
)  # fmt: skip


def _registers(trainer: Trainer) -> Tensor:
    assert isinstance(trainer.head, RegisterTokenModule)
    return trainer.head.registers


def _trainer(config: TrainConfig = CONFIG) -> Trainer:
    groups = np.arange(IDS)
    items = {m: Items(list(range(IDS)), groups, np.ones(IDS, dtype=bool)) for m in ("image", "text")}
    split = Split("train", tuple(map(str, groups)), items, np.zeros(IDS, dtype=bool))
    torch.manual_seed(config.seed)
    head = RegisterTokenModule(
        {"image": DIM, "text": DIM},
        config.dim,
        nested_dropout_rate=0.6,
        depth=config.depth,
        heads=config.heads,
        self_attention=config.self_attention,
        dropout=config.dropout,
        feature_dropout=config.feature_dropout,
        token_dropout=config.token_dropout,
        seed=config.seed,
    )
    sources: dict[str, FeatureSource] = {"image": Correlated(1), "text": Correlated(2)}
    sampler = PairSampler(split, config.batch_size, 1, 0, config.seed)
    return Trainer(config, head, sources, sampler, SingleProcess(), "f00d", Identity())


def _score(head: TokenHead) -> Mapping[str, Any]:
    """A score that depends on the head, so that resuming must also restore what was best."""
    assert isinstance(head, RegisterTokenModule)
    return {"score": abs(math.sin(1e3 * head.registers.sum().item()))}


def _run(trainer: Trainer, root: Path, validate: Callable[[TokenHead], Mapping[str, Any]] = _score) -> bool:
    folder = RunFolder(root)
    return trainer.run(folder, RunLog(Identity(), folder), validate)


def _everything(trainer: Trainer) -> dict[str, Tensor]:
    state = {f"head.{n}": p for n, p in trainer.step_module.state_dict().items()}
    assert trainer.optimizer_step.average is not None
    state |= {f"average.{n}": p for n, p in trainer.optimizer_step.average.items()}
    for index, (_, values) in enumerate(trainer.optimizer_step.optimizer.state.items()):
        state |= {f"optimizer.{index}.{n}": torch.as_tensor(v) for n, v in values.items()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stop_after", [1, 4, 6, 17, 18], ids=lambda n: f"step-{n}")
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path, stop_after: int) -> None:
    """Head, temperature, optimizer and average; stopped within an epoch, at its end, and after the last step."""
    whole = _trainer()
    assert whole.steps == 18
    assert _run(whole, tmp_path / "whole")

    stopped = _trainer()
    step = stopped.step

    def stop(next_batch: NextBatch | None = None) -> tuple[LossTerms, str | None]:
        if stopped.state.step + 1 == stop_after:
            stopped.stop.request(signal.SIGTERM)
        return step(next_batch)

    stopped.step = stop  # type: ignore[method-assign]
    folder = RunFolder(tmp_path / "stopped")
    assert not _run(stopped, folder.root)
    assert stopped.stop.number == signal.SIGTERM
    assert load_head(folder.last).progress["step"] == stop_after

    torch.manual_seed(1234)
    resumed = _trainer(dataclasses.replace(CONFIG))
    nn.init.zeros_(_registers(resumed))
    resumed.restore(load_head(folder.last))
    assert _run(resumed, folder.root)
    assert _same(_everything(resumed), _everything(whole))
    assert dataclasses.astuple(resumed.state) == dataclasses.astuple(whole.state)
    best, expected = load_head(folder.best), load_head(RunFolder(tmp_path / "whole").best)
    assert best.progress == expected.progress
    assert _same(dict(best.weights), dict(expected.weights))


def test_the_comparison_sees_another_seed(tmp_path: Path) -> None:
    """Different seeds differ, so that the test above can fail."""
    one, other = _trainer(), _trainer(dataclasses.replace(CONFIG, seed=1))
    assert _run(one, tmp_path / "one")
    assert _run(other, tmp_path / "other")
    assert not _same(_everything(one), _everything(other))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    """A real one; and afterwards the process has its own handlers again."""
    before = signal.getsignal(number)
    trainer = _trainer()

    def validate(head: TokenHead) -> Mapping[str, Any]:
        os.kill(os.getpid(), number)
        return _score(head)

    assert not _run(trainer, tmp_path, validate)
    assert trainer.stop.number == number
    assert load_head(RunFolder(tmp_path).last).progress["step"] == 6
    assert f"stopped by {number.name} after step 6; continue with --resume" in (tmp_path / "train.log").read_text()
    assert signal.getsignal(number) is before


def test_a_checkpoint_of_another_plan_is_not_resumed(tmp_path: Path) -> None:
    trainer = _trainer()
    trainer.save(RunFolder(tmp_path))
    checkpoint = load_head(RunFolder(tmp_path).last)
    longer = _trainer(dataclasses.replace(CONFIG, epochs=7))
    with pytest.raises(TrainingError, match="planned 18 steps, this run 21"):
        longer.restore(checkpoint)
    with pytest.raises(TrainingError, match="training state is missing"):
        trainer.restore(dataclasses.replace(checkpoint, training_state={}))


def _spoil(trainer: Trainer, steps: Collection[int]) -> None:
    """Make the loss of some steps (from 0) NaN."""

    def spoil(_head: nn.Module, _inputs: object, outputs: RegisterOutputs) -> RegisterOutputs:
        factor = torch.nan if trainer.state.step in steps else 1.0
        return dataclasses.replace(outputs, tokens={m: t * factor for m, t in outputs.tokens.items()})

    trainer.head.register_forward_hook(spoil)


@pytest.mark.parametrize("at_step", [0, 7])
def test_three_nan_losses_in_a_row_stop_and_name_the_last_good_checkpoint(tmp_path: Path, at_step: int) -> None:
    """The checkpoint that is named is the one before, finite, and untouched; without one, that is said."""
    trainer, folder = _trainer(), RunFolder(tmp_path)
    _spoil(trainer, range(at_step, 18))
    with pytest.raises(TrainingError, match=f"The loss is nan at step {at_step + 3}, the third") as caught:
        _run(trainer, tmp_path)
    if at_step == 0:
        assert "no checkpoint was written yet" in str(caught.value)
        assert not folder.last.exists()
        return
    assert f"the last good checkpoint is {folder.last}" in str(caught.value)
    last = load_head(folder.last)
    assert last.progress["step"] == 6
    assert all(tensor.isfinite().all() for tensor in [*last.weights.values(), *last.training_state.values()])
    fresh = _trainer()
    fresh.restore(last)
    assert _run(fresh, tmp_path)


def test_a_nan_step_is_skipped_counted_and_said(tmp_path: Path) -> None:
    """Nothing moves in it; two in a row, and a third one later, do not end the run."""
    trainer = _trainer()
    _spoil(trainer, (4, 5, 8))
    before: dict[int, dict[str, Tensor]] = {}
    step = trainer.step

    def watched(next_batch: NextBatch | None = None) -> tuple[LossTerms, str | None]:
        before[trainer.state.step] = _everything(trainer)
        return step(next_batch)

    trainer.step = watched  # type: ignore[method-assign]
    assert _run(trainer, tmp_path)
    for skipped in (4, 5, 8):
        assert _same(before[skipped], before[skipped + 1])
    assert not _same(before[6], before[7])
    assert trainer.state.skipped_steps == 3
    assert load_head(RunFolder(tmp_path).last).progress["skipped_steps"] == 3
    log = (tmp_path / "train.log").read_text()
    assert [line.split()[3] for line in log.splitlines() if "skipped" in line] == ["5", "6", "9"]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped_steps"] for r in records if r["kind"] == "train"] == [0, 2, 3, 3, 3, 3]
    assert [r["total"] is None for r in records if r["kind"] == "train"] == [False, True, True, False, False, False]


def test_a_nan_gradient_of_a_finite_loss_is_skipped_too(tmp_path: Path) -> None:
    """A bad last step of an epoch does not show whether the head is good: the checkpoint before is kept."""
    trainer, folder = _trainer(), RunFolder(tmp_path)

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * (torch.nan if trainer.state.step >= 11 else 1)

    _registers(trainer).register_hook(spoil)
    with pytest.raises(
        TrainingError, match="gradient's norm is nan at step 14, the third such step in a row; the last"
    ):
        _run(trainer, tmp_path)
    assert load_head(folder.last).progress["step"] == 6
    assert all(p.isfinite().all() for p in trainer.head.parameters())


def _break_after(trainer: Trainer, last: int) -> None:
    """Let the update of step ``last`` (from 1) give a head that is of no use, as too high a learning rate does."""
    apply = trainer.optimizer_step.apply

    def broken(step: int) -> None:
        apply(step)
        if step + 1 == last:
            nn.init.constant_(_registers(trainer), torch.inf)

    trainer.optimizer_step.apply = broken  # type: ignore[method-assign]


def test_a_head_that_an_update_broke_replaces_no_checkpoint(tmp_path: Path) -> None:
    """Step 12 has a finite loss, of the head before it; it is validated, and scores best."""
    trainer, folder = _trainer(dataclasses.replace(CONFIG, checkpoint_every=1)), RunFolder(tmp_path)
    folder.description.write_text("{}")
    _break_after(trainer, 12)
    scores = iter([0.1, 0.9])
    with pytest.raises(TrainingError, match="loss is nan at step 15, the third") as caught:
        _run(trainer, tmp_path, lambda _head: {"score": next(scores)})
    last, best = load_head(folder.last), load_head(folder.best)
    assert (last.progress["step"], last.progress["bad_in_a_row"]) == (11, 0)
    assert (best.progress["step"], best.progress["best_score"]) == (6, 0.1)
    assert all(tensor.isfinite().all() for tensor in [*last.weights.values(), *best.weights.values()])
    assert f"last good checkpoint is {folder.last}. Begin another run (--init-from {tmp_path}" in str(caught.value)
    for step in (12, 13, 14):
        assert f"no checkpoint of step {step}, whose loss" in folder.log.read_text()


def test_a_broken_head_at_the_end_is_no_result(tmp_path: Path) -> None:
    trainer, folder = _trainer(dataclasses.replace(CONFIG, eval_every=6)), RunFolder(tmp_path)
    trainer.save(folder)
    _break_after(trainer, 18)
    with pytest.raises(TrainingError, match=r"No head that was validated had a finite loss.*lower --learning-rate"):
        _run(trainer, tmp_path)
    assert load_head(folder.last).progress["step"] == 0
    assert not folder.best.exists()


def test_looking_whether_a_head_is_sound_changes_nothing() -> None:
    """All dropouts are on, and float16's scaler too: the next step's gradient and update stay what they were."""
    for config in (CONFIG, dataclasses.replace(CONFIG, precision="fp16"), dataclasses.replace(CONFIG, accum_steps=2)):
        trainers = [_trainer(config) for _ in range(2)]
        for looks, trainer in enumerate(trainers):
            trainer.step_module.train()
            for _ in range(3):
                trainer.step()
                if looks:
                    assert trainer.is_sound()
        assert _same(*(_everything(trainer) for trainer in trainers))
        assert trainers[0].optimizer_step.scaler.state_dict() == trainers[1].optimizer_step.scaler.state_dict()


def test_training_learns_and_keeps_the_best(tmp_path: Path) -> None:
    """Loss far below chance (ln 8) on what is shared; the best by the score that validation gives."""
    config = dataclasses.replace(CONFIG, epochs=40, dropout=0.0, token_dropout=0.0, feature_dropout=0.0, eval_every=10)
    trainer, folder = _trainer(config), RunFolder(tmp_path)
    scores = iter([0.1, 0.7, 0.3, 0.2])
    assert _run(trainer, tmp_path, lambda _head: {"score": next(scores)})
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
    trainer = _trainer()
    expected = _registers(trainer).detach().clone()
    trainer.step_module.train()
    for step in range(5):
        trainer.step()
        decay = min(0.9, (1 + step + 1) / (10 + step + 1))
        expected = decay * expected + (1 - decay) * _registers(trainer).detach()
    assert trainer.optimizer_step.average is not None
    torch.testing.assert_close(trainer.optimizer_step.average["registers"], expected)
    evaluated = trainer.evaluated_head()
    assert isinstance(evaluated, RegisterTokenModule)
    torch.testing.assert_close(evaluated.registers.detach(), expected)
    assert not torch.equal(evaluated.registers, _registers(trainer))
    assert not evaluated.training
    plain = _trainer(dataclasses.replace(CONFIG, ema_decay=0.0))
    assert plain.evaluated_head() is plain.head


def test_validation_leaves_training_mode_alone(tmp_path: Path) -> None:
    """A head that stayed in evaluation mode would train without dropout."""
    from fluxtalk.train.results.score import counted_embeddings

    trainer = _trainer(dataclasses.replace(CONFIG, ema_decay=0.0))
    items = {m: Items(list(range(IDS)), np.arange(IDS), np.ones(IDS, dtype=bool)) for m in ("image", "text")}
    split = Split("validation", tuple(map(str, range(IDS))), items, np.zeros(IDS, dtype=bool))
    modes = []

    def validate(head: TokenHead) -> Mapping[str, Any]:
        embeddings = counted_embeddings(head, trainer.sources, split)
        assert all(e.tokens_BND.shape == (IDS, 4, 16) for e in embeddings.values())
        modes.append(head.training)
        return {"score": 0.5}

    assert _run(trainer, tmp_path, validate)
    assert modes == [True] * 3


def test_gradients_are_clipped() -> None:
    """Clipped to the norm asked for, over head and temperature together."""
    trainer = _trainer(dataclasses.replace(CONFIG, gradient_clip=0.01))
    trainer.step_module.train()
    trainer.step()
    norms = [p.grad.norm() for p in trainer.step_module.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_temperature_is_clamped_after_each_step() -> None:
    trainer = _trainer()
    trainer.step_module.train()
    trainer.loss.log_scale.data.fill_(7.0)
    trainer.step()
    assert trainer.loss.log_scale.item() <= math.log(100) + 1e-6


def test_matrices_decay_and_vectors_and_the_temperature_do_not() -> None:
    trainer = _trainer(dataclasses.replace(CONFIG, weight_decay=0.3))
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
    trainer = _trainer()
    seen = []
    for _ in range(18):
        trainer.step()
        seen.append(trainer.optimizer_step.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([CONFIG.learning_rate * learning_rate_factor(s, 18, 0.1) for s in range(18)])


def test_bf16_trains(tmp_path: Path) -> None:
    """Autocast: parameters and loss stay float32."""
    trainer = _trainer(dataclasses.replace(CONFIG, precision="bf16", epochs=1))
    terms = trainer.gradients(0)
    assert terms.total.dtype == torch.float32
    exact = _trainer(dataclasses.replace(CONFIG, epochs=1)).gradients(0)
    assert terms.total.item() == pytest.approx(exact.total.item(), rel=0.05)
    assert terms.total.item() != exact.total.item()
    assert _run(trainer, tmp_path)
    assert all(p.dtype == torch.float32 for p in trainer.head.parameters())
