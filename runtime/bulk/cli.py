"""`fluxtalk embed`: raw items in, a file of vectors out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.errors import UsageError
from fluxtalk.runtime.backends.command_options import backend_options
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.bulk.inputs import open_input
from fluxtalk.runtime.bulk.output import check_output
from fluxtalk.runtime.bulk.stream import Wanted, embed_to_file
from fluxtalk.runtime.embedder import open_embedder
from fluxtalk.runtime.vectors import DTYPES
from fluxtalk.tokens import OUTPUT_KINDS


def serving_options(command: Any) -> Any:
    """Add `backend_options`, and the size of batches."""
    batch_size = option(
        "--batch_size", default=32, show_default=True, type=click.IntRange(1), help="Items per run of the graph."
    )
    return batch_size(backend_options(command))


def input_options(command: Any) -> Any:
    """The options of every command that embeds many items."""
    for decorate in (
        click.option(
            "--input",
            "input_file",
            type=click.Path(path_type=Path),
            help="A table (.csv, .jsonl, .parquet), or a file with one more item per line.",
        ),
        click.option("--column", help="Of the table: what to embed.  [default: the one named as MODALITY]"),
        option("--id_column", help="Of the table: what to call it.  [default: id, else the column itself]"),
        option("--skip_empty", is_flag=True, help="Of the table: leave out rows without the item."),
        click.option(
            "--dtype",
            default="float32",
            show_default=True,
            type=click.Choice(DTYPES),
            help="How numbers are stored: int8 takes a quarter of the bytes, binary (signs) a thirty-second.",
        ),
    ):
        command = decorate(command)
    return command


@click.command(name="embed")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("modality")
@click.argument("items", nargs=-1)
@input_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .npy or .parquet to write.")
@click.option("-k", "--tokens", "k", type=int, help="Register tokens to compute.  [default: all]")
@click.option(
    "--kind", default="pooled", show_default=True, type=click.Choice(OUTPUT_KINDS), help="What to write of each item."
)
@serving_options
@debug_option
@sentence_errors
def embed(
    bundle: Path,
    modality: str,
    items: tuple[str, ...],
    input_file: Path | None,
    column: str | None,
    id_column: str | None,
    skip_empty: bool,
    dtype: str,
    output: Path,
    k: int | None,
    kind: str,
    backend_options: BackendOptions,
    batch_size: int,
) -> None:
    """Embed ITEMS (texts, or paths of files or folders) of MODALITY with BUNDLE.

    However many they are: what was interrupted goes on where it stopped when the same command is given again.

    fluxtalk embed BUNDLE text "black chess queen" -k 2 -o queen.npy

    fluxtalk embed BUNDLE image --input photos.csv --column path -o photos.parquet
    """
    check_output(output)
    if skip_empty and output.suffix.lower() == ".npy":
        raise UsageError(
            f"{output} would not say which rows were left out; with --skip_empty write .parquet, with ids."
        )
    with open_embedder(bundle, backend_options) as embedder:
        opened = open_input(embedder.input_kind(modality), modality, items, input_file, column, id_column, skip_empty)
        wanted = Wanted(modality, k, kind, dtype, batch_size)
        written = embed_to_file(embedder, opened, output, wanted, opened.count())
    resumed = f", {written.resumed} items of an earlier call" if written.resumed else ""
    click.echo(f"{output}: {' x '.join(map(str, written.shape))} {dtype}{resumed}")
