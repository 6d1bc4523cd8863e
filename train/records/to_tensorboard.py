"""A run's numbers as TensorBoard scalars, if the package `tensorboard` is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fluxtalk.errors import BackendError, reason


class TensorBoardScalars:
    """Scalars by step in a folder of event files; the first event makes the folder.

    Args:
        summary_writer: the class ``torch.utils.tensorboard.SummaryWriter``.
        purge_step: existing events from this step on are withdrawn.
    """

    def __init__(self, folder: Path, summary_writer: Any, purge_step: int | None = None) -> None:
        self._folder = folder
        self._class = summary_writer
        self._purge_step = purge_step
        self._writer: Any = None

    def withdraw_after(self, step: int) -> None:
        """Withdraw the events above this step, as `RunLog.cut_back` removes the records."""
        self.close()
        self._purge_step = step + 1

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add a record's numbers; a record without a ``step`` is left out."""
        if "step" not in values:
            return
        if self._writer is None:
            self._writer = self._class(str(self._folder), purge_step=self._purge_step)
            self._purge_step = None
        for name, value in scalars(values):
            self._writer.add_scalar(f"{kind}/{name}", value, values["step"])
        # Records are rare; unflushed ones would be lost with a killed process, and resuming does not write them again.
        self._writer.flush()

    def close(self) -> None:
        """Flush pending events and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def open_tensorboard(folder: Path) -> TensorBoardScalars | None:
    """Return a writer into this folder; None if `tensorboard` is not installed.

    Raises:
        BackendError: it is installed and cannot be imported.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        if error.name == "tensorboard":
            return None
        raise _broken(error) from error
    except ImportError as error:
        raise _broken(error) from error
    return TensorBoardScalars(folder, SummaryWriter)


def scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numeric leaves of a record, without ``step`` and ``epoch``: name in safe characters, value.

    A recall ``recall[direction][k][cut-off]`` becomes ``text-to-image/R10/k2``, so that the curves of one cut-off
    stand together; those of ``recall_unseen`` and ``chance`` begin with that word.
    """
    for name, value in values.items():
        if name in ("step", "epoch"):
            continue
        for path, number in _leaves(value, ()):
            if name == "recall" and len(path) == 3:
                yield _tag(path[0], f"R{path[2]}", f"k{path[1]}"), number
            elif name == "recall_unseen" and len(path) == 3:
                yield _tag("unseen", path[0], f"R{path[2]}", f"k{path[1]}"), number
            elif name == "chance" and len(path) == 2:
                yield _tag("chance", path[0], f"R{path[1]}"), number
            else:
                yield _tag(name, *path), number


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, (*path, str(name)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def _tag(*parts: str) -> str:
    return "/".join(re.sub(r"[^\w.-]", "_", part.replace("->", "-to-")) for part in parts)


def _broken(error: ImportError) -> BackendError:
    return BackendError(
        f"tensorboard is installed but cannot be imported ({reason(error)}); repair it with "
        "`pip install --upgrade tensorboard`, or uninstall it to train without."
    )
