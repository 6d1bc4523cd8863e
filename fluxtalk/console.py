"""What the command lines share: both spellings of an option, one-sentence errors, progress bars."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click
from tqdm import tqdm

from fluxtalk.errors import FluxTalkError

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


_EXTRAS = {"torch": "train", "onnx": "export", "onnxscript": "export", "ml_dtypes": "export"}
"""What training and export import, and the extra that brings it."""


def option(name: str, *more: str, **settings: Any) -> Callable[[Command], Command]:
    """A click option that takes ``--snake_case`` and ``--kebab-case`` alike.

    ``name`` is the specified spelling, such as ``--batch_size``; it is the one that help shows first.
    """
    spellings = [name]
    if "_" in name:
        spellings.append("--" + name[2:].replace("_", "-"))
    return click.option(*spellings, *more, **settings)


def debug_option(command: Command) -> Command:
    """Add ``--debug``: a traceback instead of one sentence."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_remember_debug,
        help="Show the whole traceback of an error.",
    )(command)


def _remember_debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().meta["fluxtalk.debug"] = True


def sentence_errors(command: Command) -> Command:
    """Turn a `FluxTalkError`, or an `OSError`, into one sentence on standard error and its exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except FluxTalkError as error:
            if _debugging():
                raise
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except ModuleNotFoundError as error:
            if _debugging() or error.name not in _EXTRAS:
                raise
            extra = "export" if command.__module__.startswith("fluxtalk.export") else _EXTRAS[error.name]
            sentence = f"This command needs {error.name}, which is not installed; pip install 'fluxtalk[{extra}]'."
            click.echo(f"error: {sentence}", err=True)
            sys.exit(FluxTalkError.exit_code)
        except BrokenPipeError:
            # The reader of our output went away (`| head`): not an error of ours.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            # Where a path of the user's cannot be read or written: no permission, no space, a file in a folder's place.
            if _debugging():
                raise
            click.echo(f"error: {error}; check the path, its permissions and the free space.", err=True)
            sys.exit(FluxTalkError.exit_code)

    return wrapped  # type: ignore[return-value]


def _debugging() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().meta.get("fluxtalk.debug"))


class AliasChoice(click.Choice[str]):
    """A choice that also accepts other spellings, which help does not show.

    Args:
        choices: as for `click.Choice`.
        aliases: other spelling to the choice that it stands for.
    """

    def __init__(self, choices: Sequence[str], aliases: Mapping[str, str]) -> None:
        super().__init__(choices)
        self._aliases = aliases

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The choice that a spelling stands for."""
        return super().convert(self._aliases.get(value, value), param, ctx)


def progress(items: Iterable[T] | None, what: str, total: int | None = None, unit: str = "it") -> Any:
    """A progress bar with rate and time left on standard error; quiet updates where that is no terminal."""
    interactive = sys.stderr.isatty()
    return tqdm(
        items,
        desc=what,
        total=total,
        unit=unit,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
        mininterval=0.1 if interactive else 10.0,
        maxinterval=0.5 if interactive else 30.0,
        file=sys.stderr,
    )
