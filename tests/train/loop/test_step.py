"""One step's gradient: gradient caching is the plain gradient, whatever is trained; compile and half precision."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import Trainer
from fluxtalk.train.loop.loader import read_batch
from tests.train.in_memory import in_memory_trainer, three_modalities

CONFIG = TrainConfig(
    "stage1.pth", "runs", "run", batch_size=16, epochs=2, dim=16, heads=2, dropout=0.0, token_dropout=0.3,
    items_per_id=2, learning_rate=3e-3, device="cpu",
)  # fmt: skip


def _gradient(trainer: Trainer, step: int = 0) -> Tensor:
    trainer.step_module.train()
    trainer.gradients(step)
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1)
            for _, p in sorted(trainer.step_module.named_parameters())
        ]
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nested_draw": "batch"},
        {"nested_draw": "all"},
        {"contrastive": "sigmoid"},
        {"aggregation": "maxsim"},
        {"aggregation": "concat", "depth": 2, "self_attention": True},
        {"complementary_objective": "contrast", "num_overlapping_tokens": 2},
        {"complementary_objective": "reconstruction"},
        {"complementary_objective": "difference", "num_overlapping_tokens": 2},
    ],
    ids=lambda o: "-".join(map(str, o.values())) or "specified",
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_gradient_caching_is_the_plain_gradient(options: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    """Four passes of 4 rows against one of 16, with missing modalities and repeated items."""
    config = dataclasses.replace(CONFIG, **options)
    plain = in_memory_trainer(config, three_modalities(), dtype=dtype)
    cached = in_memory_trainer(
        dataclasses.replace(config, batch_size=4, accum_steps=4), three_modalities(), dtype=dtype
    )
    for trainer in (plain, cached):
        trainer.loss.to(dtype)
    assert cached.sampler.global_batch == plain.sampler.global_batch == 16
    expected, got = _gradient(plain), _gradient(cached)
    assert expected.norm() > 1e-3
    assert (got - expected).norm() <= tolerance * expected.norm()


def test_cached_passes_replay_their_dropout() -> None:
    """Dropout is on: the second run of a pass draws what the first drew: gradients are those of the same numbers."""
    config = dataclasses.replace(CONFIG, batch_size=4, accum_steps=4, dropout=0.3, feature_dropout=0.2)
    cached = in_memory_trainer(config, three_modalities(), dtype=torch.float64)
    cached.loss.double()
    got = _gradient(cached)
    # The same passes without caching: one graph over all of them.
    module = cached.step_module
    rows = cached._passes(0)[:4]
    draws = module.draws(0)
    cached.optimizer_step.zero_grad()
    reads = [module._read(read_batch(cached.sources, part, cached.device), draws, i) for i, part in enumerate(rows)]
    module._loss(reads, draws).total.backward()  # type: ignore[no-untyped-call]
    expected = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for _, p in sorted(module.named_parameters())]
    )
    assert (got - expected).norm() <= 1e-10 * expected.norm()


def test_negatives_span_the_whole_effective_batch() -> None:
    """The loss of four cached passes of 4 starts near ln 16, not ln 4."""
    config = dataclasses.replace(CONFIG, batch_size=4, accum_steps=4, items_per_id=1, nested_dropout_rate=0.0)
    groups = {m: list(range(24)) for m in ("image", "text")}
    small = in_memory_trainer(dataclasses.replace(config, accum_steps=1), groups)
    large = in_memory_trainer(config, groups)
    assert large.gradients(0).contrastive.item() > small.gradients(0).contrastive.item() + 0.7


def test_one_k_for_the_batch_and_several_k_reach_the_loss() -> None:
    """`batch` gives all samples and modalities one length; `all` keeps every token and names the lengths."""
    trainer = in_memory_trainer(dataclasses.replace(CONFIG, nested_draw="batch"), three_modalities())
    lengths = set()
    for step in range(40):
        draws = trainer.step_module.draws(step)
        values = torch.cat(list(draws.lengths.values())).unique()
        assert len(values) == 1
        lengths.add(int(values))
    assert lengths == {2, 3, 4} | ({1} & lengths)
    trainer = in_memory_trainer(dataclasses.replace(CONFIG, nested_draw="all"), three_modalities())
    draws = trainer.step_module.draws(3)
    assert draws.prefix_counts[:2] == (1, 4)
    assert len(draws.prefix_counts) == 4
    assert all((length == 4).all() for length in draws.lengths.values())


def test_fp16_trains_with_a_scaler() -> None:
    trainer = in_memory_trainer(dataclasses.replace(CONFIG, precision="fp16"), three_modalities())
    exact = in_memory_trainer(CONFIG, three_modalities())
    trainer.step_module.train()
    before = trainer.optimizer_step.scaler.get_scale()
    for _ in range(4):
        terms, bad = trainer.step()
        assert bad is None
    assert trainer.state.skipped_steps == 0
    assert terms.total.dtype == torch.float32
    fresh = in_memory_trainer(dataclasses.replace(CONFIG, precision="fp16"), three_modalities())
    loss = fresh.gradients(0).total.item()
    assert loss == pytest.approx(exact.gradients(0).total.item(), rel=0.02)
    assert loss != exact.gradients(0).total.item()
    assert before > 1
    state = trainer.optimizer_step.state()
    assert state["scaler"][0] == trainer.optimizer_step.scaler.get_scale()
    other = in_memory_trainer(dataclasses.replace(CONFIG, precision="fp16"), three_modalities())
    other.optimizer_step.restore({**state, "scaler": torch.tensor([512.0, 3.0], dtype=torch.float64)})
    assert other.optimizer_step.scaler.get_scale() == 512


def test_a_scalers_own_skip_is_not_counted() -> None:
    """An overflow in float16 lowers the scale and leaves the step out; that is how a scaler works."""
    trainer = in_memory_trainer(dataclasses.replace(CONFIG, precision="fp16"), three_modalities())
    trainer.step_module.train()
    trainer.optimizer_step.scaler.load_state_dict({**trainer.optimizer_step.scaler.state_dict(), "scale": 1e30})
    before = {n: p.detach().clone() for n, p in trainer.head.named_parameters()}
    _, bad = trainer.step()
    assert bad is None
    assert trainer.state.skipped_steps == 0
    assert trainer.optimizer_step.scaler.get_scale() < 1e30
    assert all(torch.equal(p, before[n]) for n, p in trainer.head.named_parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
def test_compiled_steps_are_the_eager_ones() -> None:
    config = dataclasses.replace(CONFIG, dropout=0.0)
    eager = in_memory_trainer(config, three_modalities())
    compiled = in_memory_trainer(dataclasses.replace(config, compile=True), three_modalities())
    for step in range(2):
        expected, got = _gradient(eager, step), _gradient(compiled, step)
        assert (got - expected).norm() <= 1e-4 * expected.norm()
