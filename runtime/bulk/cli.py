"""`fluxtalk embed`: raw items in, a file of vectors out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from fluxtalk.artifacts.storage import StoredPath, stored_path
from fluxtalk.console import Function, debug_option, option, sentence_errors
from fluxtalk.datasets.bad_items import SKIP, BadItemPolicy, bad_item_options
from fluxtalk.errors import UsageError
from fluxtalk.preprocess.prompts import ROLES
from fluxtalk.runtime.backends.command_options import backend_options
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.bulk.inputs import open_input
from fluxtalk.runtime.bulk.output import check_output
from fluxtalk.runtime.bulk.stream import EmbedOptions, EmbedParts, bad_items_report, embed_to_file
from fluxtalk.runtime.embedder import open_embedder
from fluxtalk.runtime.vectors import DTYPES
from fluxtalk.tokens import OUTPUT_KINDS, POOLED


def _in_order(*decorators: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """One decorator of several, whose options help lists in this order."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def k_option(text: str) -> Callable[[Function], Function]:
    """The option ``-k``; ``--tokens`` is its spelling from before, which `fluxtalk-export` has for another thing."""
    return option("-k", "--k", "k", aliases=("--tokens",), type=int, help=text)


serving_options = _in_order(
    option("--batch_size", default=32, show_default=True, type=click.IntRange(1), help="Items per run of the graph."),
    backend_options,
)
"""`backend_options` and the size of batches."""

input_options = _in_order(
    option(
        "--input",
        "input_file",
        type=click.Path(),
        help="A table (.csv, .jsonl, .parquet), or a file with one more item per line; s3://, gs:// and the like too.",
    ),
    option("--column", help="Column of the table to embed.  [default: the one named as MODALITY]"),
    option("--id_column", help="Column of the table with names.  [default: id, else the embedded column]"),
    option("--skip_empty", is_flag=True, help="Leave out rows of the table without the item."),
)
"""The options of every command that embeds many items."""


def told(left_out: int, output: StoredPath) -> str:
    """Say how many items were left out of an output, and where they are listed; empty if none was."""
    return f"; {left_out} items cannot be used and are left out: {bad_items_report(output)}" if left_out else ""


def kind_option(kinds: tuple[str, ...], text: str) -> Callable[[Function], Function]:
    """The option ``--kind``, which is ``output`` in Python and over HTTP: on a command line that is the file."""
    return option("--kind", default=POOLED, show_default=True, type=click.Choice(kinds), help=text)


dimensions_option = option(
    "--dimensions",
    type=click.IntRange(1),
    help="Numbers of a vector, one of the sizes that were trained; of tokens side by side it may choose k.",
)

dtype_option = option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(DTYPES),
    help="Number format of vectors: int8 takes a quarter of the bytes, binary (signs) a thirty-second.",
)


@click.command(name="embed")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("modality")
@click.argument("items", nargs=-1)
@input_options
@option(
    "-o",
    "--output",
    "output_name",
    required=True,
    type=click.Path(),
    help="The .npy or .parquet to write; s3://, gs:// and the like too.",
)
@k_option("Register tokens to compute.  [default: all]")
@kind_option(OUTPUT_KINDS, "Kind of vectors to write.")
@dimensions_option
@dtype_option
@option(
    "--role",
    type=click.Choice(tuple(ROLES)),
    help="Role of texts, which chooses one of the bundle's prompts.  [default: its default prompt, if there is one]",
)
@option("--ray", is_flag=True, help="Embed on all CPUs of Ray, of this machine or of its cluster.")
@bad_item_options()
@serving_options
@debug_option
@sentence_errors
def embed(
    bundle: Path,
    modality: str,
    items: tuple[str, ...],
    input_file: str | None,
    column: str | None,
    id_column: str | None,
    skip_empty: bool,
    output_name: str,
    k: int | None,
    kind: str,
    dimensions: int | None,
    dtype: str,
    role: str | None,
    ray: bool,
    on_bad_item: str,
    bad_items_limit: float,
    batch_size: int,
    backend_options: BackendOptions,
) -> None:
    """Embed ITEMS (texts, or paths of files or folders, of object storage too) of MODALITY with BUNDLE.

    There may be any number. If the command is interrupted, the same command goes on where it stopped.

    fluxtalk embed BUNDLE text "black chess queen" -k 2 -o queen.npy

    fluxtalk embed BUNDLE image --input photos.csv --column path -o photos.parquet
    """
    output = stored_path(output_name)
    check_output(output)
    policy = BadItemPolicy(on_bad_item, bad_items_limit)
    if skip_empty and output.suffix.lower() == ".npy":
        raise UsageError(
            f"{output} would not say which rows were left out; with --skip-empty write .parquet, with ids."
        )
    with open_embedder(bundle, backend_options) as embedder:
        kind_of_items, pass_on = embedder.input_kind(modality), policy.action == SKIP
        listed = None if input_file is None else stored_path(input_file)
        opened = open_input(kind_of_items, modality, items, listed, column, id_column, skip_empty, pass_on)
        for note in opened.notes():
            click.echo(f"warning: {note}", err=True)
        options = EmbedOptions(modality, k, kind, dtype, batch_size, role, dimensions)
        with _workers(ray, bundle, backend_options, options, kind_of_items) as embed_parts:
            written = embed_to_file(
                embedder, opened, output, options, opened.count(), policy=policy, embed_parts=embed_parts
            )
    resumed = f", {written.resumed} items of an earlier call" if written.resumed else ""
    click.echo(f"{output}: {' x '.join(map(str, written.shape))} {dtype}{resumed}{told(written.left_out, output)}")


def _workers(
    ray: bool, bundle: Path, backend_options: BackendOptions, options: EmbedOptions, kind: str
) -> AbstractContextManager[EmbedParts | None]:
    """Give what embeds parts on Ray, if that is asked for."""
    if not ray:
        return nullcontext(None)
    from fluxtalk.runtime.bulk.on_ray import ray_workers

    return ray_workers(bundle, backend_options, options, kind)
