"""`fluxtalk`: one command, its subcommands loaded when they are called.

The one module that may name every room: `fluxtalk embed` must not wait for torch.
"""

from __future__ import annotations

import importlib

import click

_COMMANDS = {
    "align": ("fluxtalk.align.cli:main", "From pairs and encoders to a verified bundle: all stages below, in one."),
    "stage1": ("fluxtalk.train.stage1.cli:main", "Make a checkpoint of frozen encoders."),
    "features": ("fluxtalk.train.features.cli:main", "Encode data once ahead of training, and list what is cached."),
    "train": ("fluxtalk.train.cli:main", "Train register tokens over them (fluxtalk-train)."),
    "eval": ("fluxtalk.train.results.evaluate_cli:main", "Score any checkpoint of a run on any data set."),
    "compare": ("fluxtalk.train.results.compare_cli:main", "Compare runs, of other implementations too."),
    "baseline": (
        "fluxtalk.train.results.baseline_cli:main",
        "Train mean-pool + linear on a run's features, to compare.",
    ),
    "export": ("fluxtalk.export.cli:main", "Turn a run into a bundle, and verify bundles (fluxtalk-export)."),
    "serve": ("fluxtalk.runtime.server.cli:serve", "Serve a bundle over HTTP: OpenAI's API, search, a page."),
    "embed": ("fluxtalk.runtime.bulk.cli:embed", "Embed texts, images or features with a bundle."),
    "index": ("fluxtalk.runtime.index.cli:main", "Build and search an index of embeddings."),
    "doctor": ("fluxtalk.runtime.doctor.cli:main", "Measure the backends that fit this machine, and advise on k."),
    "inspect": ("fluxtalk.inspect_cli:main", "Describe a checkpoint, run, bundle or index."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table above: listing the commands must not import them.
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in _COMMANDS.items()])


@click.group(cls=_Lazy)
@click.version_option(package_name="fluxtalk")
def main() -> None:
    """Align frozen encoders with a few ordered register tokens, and serve the result."""
