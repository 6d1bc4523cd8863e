"""Mean-pooled frozen features that peers train on, and the report of a training.

A script is called with ``python SCRIPT '{"features": FILE.npz, "output": FILE.npz, "epochs": ..., "batch_size": ...,
"dim": ..., "seed": ..., "threads": ..., "options": {...}}'``, writes the vectors of what is held out, and prints a
line of JSON: steps, seconds and parameters. It imports nothing of FluxTalk.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

MODALITIES = ("image", "text")
HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class Pooled:
    """One vector for each item; items of one id belong together."""

    train: dict[str, torch.Tensor]
    """Modality to (items, dim)."""
    rows_of_id: dict[str, list[np.ndarray[Any, Any]]]
    """Modality to the rows of each id that has items in all of them."""
    held_out: dict[str, dict[str, torch.Tensor]]
    """Split to modality to (items, dim)."""

    @property
    def ids(self) -> int:
        """Number of ids to train on."""
        return len(self.rows_of_id[MODALITIES[0]])

    def draw(self, modality: str, ids: np.ndarray[Any, Any], rng: np.random.Generator) -> torch.Tensor:
        """Draw one item of each id: (ids, dim)."""
        rows = [rng.choice(self.rows_of_id[modality][number]) for number in ids]
        return self.train[modality][torch.as_tensor(np.array(rows))]


def read(path: Path) -> Pooled:
    """Read what the comparison wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    groups = {m: arrays[f"train_{m}_ids"] for m in MODALITIES}
    shared = sorted(set.intersection(*(set(ids.tolist()) for ids in groups.values())))
    return Pooled(
        {m: torch.from_numpy(arrays[f"train_{m}"]) for m in MODALITIES},
        {m: [np.flatnonzero(ids == number) for number in shared] for m, ids in groups.items()},
        {split: {m: torch.from_numpy(arrays[f"{split}_{m}"]) for m in MODALITIES} for split in HELD_OUT},
    )


Embed = Callable[[str, torch.Tensor], torch.Tensor]
"""Modality and pooled features (B, dim) to vectors."""


def run(train: Callable[[Pooled, dict[str, Any]], tuple[Embed, dict[str, Any]]]) -> None:
    """Train as the command line says, write vectors, and print the report."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    torch.manual_seed(given["seed"])
    pooled = read(Path(given["features"]))
    embed, report = train(pooled, given)
    with torch.inference_mode():
        found = {
            f"{s}_{m}": embed(m, x).float().numpy() for s, part in pooled.held_out.items() for m, x in part.items()
        }
    np.savez(given["output"], **found)  # type: ignore[arg-type]
    print(json.dumps(report))
