"""Options of every command that loads a bundle: ``--backend``, ``--precision`` and ``--threads``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from fluxtalk.console import sentence_errors
from fluxtalk.runtime.backends.options import AUTO, BACKENDS, BackendOptions
from fluxtalk.scoring.parity import PRECISIONS

threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Threads of one operator.  [default: the available cores]"
)
_OPTIONS = (
    click.option(
        "--backend",
        default=AUTO,
        show_default=True,
        type=click.Choice(BACKENDS),
        help="Library that runs the graphs.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="A precision that the bundle holds.  [default: the one that the backend is best at]",
    ),
    threads_option,
)


def backend_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as one keyword, ``backend_options: BackendOptions``."""

    @sentence_errors  # `BackendOptions` refuses too many threads, outside of the command's own `sentence_errors`
    @functools.wraps(command)
    def wrapped(*args: Any, backend: str, precision: str | None, threads: int | None, **others: Any) -> Any:
        return command(*args, backend_options=BackendOptions(backend, precision, threads), **others)

    decorated: Callable[..., Any] = wrapped
    for decorate in reversed(_OPTIONS):  # help lists the option that was added last first
        decorated = decorate(decorated)
    return decorated
