"""Steps whose loss or gradient is NaN or infinite: a few are left out, more end a run."""

from __future__ import annotations

from fluxtalk.artifacts.run import RunFolder
from fluxtalk.errors import TrainingError
from fluxtalk.train.records.log import RunLog

BAD_STEPS = 3
"""Steps in a row without a usable loss or gradient that end a run."""


def report_bad_step(bad: str, step: int, in_a_row: int, folder: RunFolder, log: RunLog) -> None:
    """Say that a step was left out.

    Args:
        bad: what of it cannot be used.
        in_a_row: such steps up to this one.

    Raises:
        TrainingError: there were too many in a row.
    """
    if in_a_row >= BAD_STEPS:
        raise TrainingError(f"The {bad} at step {step}, the third such step in a row; {ways_on(folder)}")
    log.line(f"step {step} skipped: the {bad}")


def ways_on(folder: RunFolder) -> str:
    """What a run that cannot go on leaves, and what to do: only another run may have other options."""
    kept = f"the last good checkpoint is {folder.last}" if folder.last.is_file() else "no checkpoint was written yet"
    # Only a run that is described lends its head.
    lent = folder.best.is_file() and folder.description.is_file()
    begin = f" (--init_from {folder.root} takes its best head)" if lent else ""
    return f"{kept}. Begin another run{begin} with a lower --learning_rate, or check the features."
