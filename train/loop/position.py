"""How far a run has come: part of every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """Where training stands."""

    step: int = 0
    """Steps done, skipped ones included."""
    best_score: float = -1.0
    best_epoch: int = 0
    skipped_steps: int = 0
    """Steps without an update, because the loss or its gradient was NaN or infinite."""
    bad_in_a_row: int = 0
