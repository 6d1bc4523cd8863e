"""Training as FuseMix does it, on mean-pooled features of frozen encoders.

Vouitsis et al. 2024, "Data-Efficient Multimodal Fusion on a Single GPU": for each modality an adapter of inverted
bottlenecks, ``x + W2 GELU(W1 LayerNorm(x))``, and a linear map into the shared space; pairs are mixed in the space of
the features, with one coefficient for both modalities, ``l x_i + (1 - l) x_j`` and ``l y_i + (1 - l) y_j``; the loss
is the symmetric InfoNCE with a learned temperature. Written from the paper; optimizer and schedule are as in
FluxTalk's recipe.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from pooled import MODALITIES, Embed, Pooled, run  # type: ignore[import-not-found]
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Widens, narrows, and adds the result to what it read: (B, dim) to (B, dim)."""

    def __init__(self, dim: int, widening: int, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, widening * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(widening * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        added: Tensor = x + self.branch(x)
        return added


def adapter(size: int, dim: int, depth: int, widening: int, dropout: float) -> nn.Module:
    """Build the adapter of a modality: (B, size) to (B, dim)."""
    blocks = [Bottleneck(size, widening, dropout) for _ in range(depth)]
    return nn.Sequential(nn.LayerNorm(size), *blocks, nn.LayerNorm(size), nn.Linear(size, dim))


def train(pooled: Pooled, given: dict[str, Any]) -> tuple[Embed, dict[str, Any]]:
    """Train the adapters; give how to embed with them, and what it took."""
    options, batch = given["options"], given["batch_size"]
    adapters = nn.ModuleDict(
        {
            m: adapter(
                pooled.train[m].shape[1], given["dim"], options["depth"], options["widening"], options["dropout"]
            )
            for m in MODALITIES
        }
    )
    temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    parameters = [*adapters.parameters(), temperature]
    decay = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options["weight_decay"]}
    kept = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decay, kept], lr=options["learning_rate"])
    steps = given["epochs"] * (pooled.ids // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    rng = np.random.default_rng(given["seed"])
    started = time.perf_counter()
    for _ in range(given["epochs"]):
        order = rng.permutation(pooled.ids)
        for first in range(0, pooled.ids - batch + 1, batch):
            ids = order[first : first + batch]
            other, share = rng.permutation(batch), float(rng.beta(options["mixing"], options["mixing"]))
            vectors = []
            for m in MODALITIES:
                features = pooled.draw(m, ids, rng)
                mixed = share * features + (1 - share) * features[torch.as_tensor(other)]
                vectors.append(nn.functional.normalize(adapters[m](mixed), dim=-1))
            scores = vectors[0] @ vectors[1].T * temperature.exp().clamp(max=100)
            targets = torch.arange(batch)
            loss = (nn.functional.cross_entropy(scores, targets) + nn.functional.cross_entropy(scores.T, targets)) / 2
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - started
    adapters.eval()

    def embed(modality: str, features: Tensor) -> Tensor:
        return nn.functional.normalize(adapters[modality](features), dim=-1)

    return embed, {"steps": steps, "seconds": seconds, "parameters": sum(p.numel() for p in parameters)}


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: a linear rise in the first tenth, then a cosine."""
    rising = max(1, steps // 10)
    return (step + 1) / rising if step < rising else (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


if __name__ == "__main__":
    run(train)
