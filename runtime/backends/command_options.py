"""Options of the commands that load a bundle, each declared once: backend, precision, threads, host code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from fluxtalk.artifacts.engine import FLAVOR_ALIASES
from fluxtalk.console import AliasChoice, option, sentence_errors
from fluxtalk.runtime.backends.options import AUTO, BACKENDS, BackendOptions
from fluxtalk.scoring.parity import PRECISIONS

backend_option = option(
    "--backend",
    default=AUTO,
    show_default=True,
    type=AliasChoice(BACKENDS, FLAVOR_ALIASES),
    help="Library that runs the graphs.",
)
precision_option = option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="A precision that the bundle holds.  [default: the one that the backend is best at]",
)
threads_option = option(
    "--threads", type=click.IntRange(1), help="Threads of one operator.  [default: the available cores]"
)
host_code_option = option(
    "--allow_host_code", is_flag=True, help="Run version-compatible engines, and the code that they bring."
)


def backend_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as one keyword, ``backend_options: BackendOptions``."""

    @sentence_errors  # `BackendOptions` refuses too many threads, outside of the command's own `sentence_errors`
    @functools.wraps(command)
    def wrapped(*args: Any, backend: str, precision: str | None, threads: int | None, **others: Any) -> Any:
        return command(*args, backend_options=BackendOptions(backend, precision, threads), **others)

    decorated: Callable[..., Any] = wrapped
    for decorate in (
        threads_option,
        precision_option,
        backend_option,
    ):  # help lists the option that was added last first
        decorated = decorate(decorated)
    return decorated
