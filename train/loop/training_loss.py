"""The loss that a run's options ask for."""

from __future__ import annotations

from fluxtalk.model.head.token_head import TokenHead
from fluxtalk.model.losses.complementary import build_objective
from fluxtalk.model.losses.register_loss import RegisterTokenLoss
from fluxtalk.model.process_group import World
from fluxtalk.train.config import TrainConfig


def build_loss(config: TrainConfig, head: TokenHead, world: World, global_batch: int) -> RegisterTokenLoss:
    """The loss over a head's tokens.

    Args:
        global_batch: rows of one step over all processes.
    """
    sizes = head.config
    complementary = sizes.num_register_tokens - sizes.num_overlapping_tokens
    return RegisterTokenLoss(
        config.complementary_reg_weight,
        world,
        contrastive=config.contrastive,
        aggregation=sizes.aggregation,
        batch_size=global_batch,
        objective=build_objective(
            config.complementary_objective,
            sizes.dims,
            sizes.dim,
            complementary,
            config.complementary_correlation_weight,
        ),
        objective_weight=config.complementary_objective_weight,
    )
