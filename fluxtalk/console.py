"""Parts that all command lines share: options and their groups, one-sentence errors, progress bars."""

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
Function = TypeVar("Function", bound=Callable[..., Any])
Log = Callable[[str], None]
"""Takes a sentence for the user."""

_EXTRAS = {"torch": "train", "onnx": "export", "onnxscript": "export", "ml_dtypes": "export"}
"""Module that training or export imports, to the extra that installs it."""


class Option(click.Option):
    """An option that help shows with hyphens, in a titled group, and that takes its underscored spelling silently.

    Args:
        param_decls: as for `click.Option`. A long name with underscores is one from before hyphens: help, usage and
            errors show it with hyphens, and both spellings are accepted. New options are declared with hyphens.
        group: title that `GroupedCommand` lists the option under; None is "Options".
        aliases: spellings from before, which are accepted silently too.
    """

    def __init__(
        self,
        param_decls: Sequence[str] | None = None,
        *,
        group: str | None = None,
        aliases: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        declared = list(param_decls or ())
        super().__init__([_hyphenated(part) for part in declared], **settings)
        self.group = group
        self._aliases = aliases
        spellings = [name for part in declared if part.startswith("-") for name in part.split("/")]
        self._underscored = [name for name in spellings if name != _hyphenated(name)]

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Accept underscored spellings and aliases too, which `opts` leaves out so that nothing shows them."""
        shown, shown_off = self.opts, self.secondary_opts
        self.opts = [*shown, *(name for name in self._underscored if _hyphenated(name) in shown), *self._aliases]
        self.secondary_opts = [*shown_off, *(name for name in self._underscored if _hyphenated(name) in shown_off)]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts, self.secondary_opts = shown, shown_off


def _hyphenated(declaration: str) -> str:
    """A spelling with hyphens; the name of a function's argument stays as it is."""
    return declaration.replace("_", "-") if declaration.startswith("-") else declaration


def option(name: str, *more: str, **settings: Any) -> Callable[[Function], Function]:
    """Add an `Option`: ``option("--batch_size", ...)`` is shown as ``--batch-size`` and takes both spellings."""
    return click.option(name, *more, cls=Option, **settings)


class GroupedCommand(click.Command):
    """A command whose help lists options under the titles of their groups, in the order of declaration."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List every group's options, then those without a group."""
        groups: dict[str | None, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(parameter, "group", None), []).append(record)
        others = groups.pop(None, [])
        for title, records in [*groups.items(), ("Options", others)]:
            with formatter.section(str(title)):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Suggest only spellings that help shows."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            shown = [name for parameter in self.get_params(ctx) for name in parameter.opts]
            raise click.NoSuchOption(error.option_name, possibilities=shown, ctx=ctx) from None


def from_environment(command: click.Command, prefix: str) -> click.Command:
    """Let environment variables set a command's options and arguments: ``--max-body`` is PREFIX_MAX_BODY.

    What is typed wins over a variable, and a variable over the default. Help names each variable. An option that can be
    repeated takes several values with white space between them; paths with the separator of PATH.
    """
    for parameter in command.params:
        if parameter.expose_value:
            name = parameter.opts[0].lstrip("-") if isinstance(parameter, click.Option) else str(parameter.name)
            parameter.envvar = f"{prefix}_{name.replace('-', '_').upper()}"
            if isinstance(parameter, click.Option):
                parameter.show_envvar = True
    return command


def allow_code_option(command: Function, group: str | None = None) -> Function:
    """Add ``--allow-code``: the command trusts the code of its stage 1 checkpoint before it builds the encoders."""
    return option(
        "--allow-code",
        is_flag=True,
        group=group,
        help="Trust the code that another's stage 1 checkpoint names (module:...), from now on.",
    )(command)


def debug_option(command: Function) -> Function:
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


def sentence_errors(command: Function) -> Function:
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
            # The reader of our output is gone (`| head`), which is not an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            # A path that the user named: no permission, no space, or a file in place of a folder.
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
    """A progress bar with rate and time left on standard error; updated every 10 s if that is not a terminal."""
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
