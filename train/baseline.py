"""The baseline that register tokens must beat: mean-pooled features, one linear map per modality.

Trained on the same cached features, batches, loss, optimiser, schedule and choice by validation as the run
it is compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fluxtalk.console import progress
from fluxtalk.datasets import Split
from fluxtalk.model.encoders import Features
from fluxtalk.model.losses import RegisterTokenLoss
from fluxtalk.model.nested_dropout import derive_seed
from fluxtalk.model.pooling import l2_normalise
from fluxtalk.model.registers import RegisterOutputs
from fluxtalk.model.world import OneProcess
from fluxtalk.train.config import TrainConfig
from fluxtalk.train.engine import adamw, learning_rate_factor
from fluxtalk.train.evaluate import retrieval
from fluxtalk.train.features import FeatureSource
from fluxtalk.train.run import Inputs
from fluxtalk.train.sampler import PairSampler

_BATCH = 512


class MeanPoolLinear(nn.Module):
    """LayerNorm on each feature, mean over the features, linear: (B, L, E) to (B, D)."""

    def __init__(self, dims: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.norm = nn.ModuleDict({name: nn.LayerNorm(size) for name, size in dims.items()})
        self.linear = nn.ModuleDict({name: nn.Linear(size, dim) for name, size in dims.items()})

    def forward(self, modality: str, features: Features) -> Tensor:
        """(B, D), not normalised."""
        mask = features.mask_BL[..., None].float()
        pooled = (self.norm[modality](features.features_BLD) * mask).sum(dim=1) / mask.sum(dim=1)
        result: Tensor = self.linear[modality](pooled)
        return result


def train_baseline(config: TrainConfig, inputs: Inputs) -> dict[str, Any]:
    """Train the baseline with a run's options and return its `retrieval` scores on the test split."""
    train = inputs.dataset.split("train")
    sources = inputs.sources("train")
    sampler = PairSampler(train, config.batch_size, 1, 0, config.seed)
    torch.manual_seed(config.seed)
    model = MeanPoolLinear({name: source.dim for name, source in sources.items()}, config.dim).to(inputs.device)
    loss = RegisterTokenLoss(0.0, OneProcess()).to(inputs.device)
    trained = nn.ModuleList([model, loss])
    optimiser = adamw(trained, config)
    steps = config.epochs * sampler.steps_per_epoch
    validation, validation_sources = inputs.dataset.split("validation"), inputs.sources("validation")
    best, best_score = copy.deepcopy(model.state_dict()), -1.0
    for step in progress(range(steps), "training the baseline", unit="step"):
        epoch, step_in_epoch = divmod(step, sampler.steps_per_epoch)
        batch = sampler.batch(epoch, step_in_epoch)
        torch.manual_seed(derive_seed(config.seed, "baseline", step))
        tokens = {m: model(m, source.batch(batch.rows[m]))[:, None] for m, source in sources.items()}
        keep = {m: torch.ones(t.shape[:2], dtype=torch.bool, device=t.device) for m, t in tokens.items()}
        terms = loss(RegisterOutputs(tokens, keep, 1), torch.from_numpy(batch.ids).to(inputs.device))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, steps, config.warmup_fraction)
        optimiser.zero_grad(set_to_none=True)
        terms.total.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), config.gradient_clip)
        optimiser.step()
        loss.clamp_temperature()
        if step_in_epoch == sampler.steps_per_epoch - 1 and (
            (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs
        ):
            score = retrieval(_embeddings(model, validation_sources, validation), validation)["score"]
            if score > best_score:
                best, best_score = copy.deepcopy(model.state_dict()), score
    model.load_state_dict(best)
    test = inputs.dataset.split("test")
    return retrieval(_embeddings(model, inputs.sources("test"), test), test)


def _embeddings(
    model: MeanPoolLinear, sources: Mapping[str, FeatureSource], split: Split
) -> dict[str, NDArray[np.float32]]:
    embeddings = {}
    for modality, source in sources.items():
        rows = np.flatnonzero(split.items[modality].counted)
        with torch.inference_mode():
            parts = [
                l2_normalise(model(modality, source.batch(rows[start : start + _BATCH])))
                for start in range(0, len(rows), _BATCH)
            ]
        embeddings[modality] = torch.cat(parts)[:, None].cpu().numpy()
    return embeddings
