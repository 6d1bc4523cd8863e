"""`fluxtalk index`: build an index of one modality, search it from any other, push it into a database."""

from __future__ import annotations

from pathlib import Path

import click

from fluxtalk.artifacts.files import require_free
from fluxtalk.artifacts.index import IndexSpec
from fluxtalk.artifacts.storage import stored_path
from fluxtalk.console import GroupedCommand, debug_option, option, sentence_errors
from fluxtalk.datasets.bad_items import SKIP, BadItemPolicy, bad_item_options
from fluxtalk.datasets.outside import outside_notes
from fluxtalk.errors import IndexFileError
from fluxtalk.preprocess.prompts import DOCUMENT
from fluxtalk.runtime.backends.command_options import backend_options
from fluxtalk.runtime.backends.options import BackendOptions
from fluxtalk.runtime.bulk.cli import (
    dimensions_option,
    dtype_option,
    input_options,
    k_option,
    kind_option,
    serving_options,
    told,
)
from fluxtalk.runtime.bulk.inputs import TableColumn, open_input
from fluxtalk.runtime.bulk.stream import EmbedOptions, embed_in_parts
from fluxtalk.runtime.embedder import open_embedder
from fluxtalk.runtime.index.build import build_index, golden_queries
from fluxtalk.runtime.index.limits import Limits
from fluxtalk.runtime.index.push_cli import push
from fluxtalk.runtime.index.search import SearchIndex
from fluxtalk.tokens import COMPLEMENTARY, SEARCHED_KINDS, TOKENS, side_by_side


@click.group(name="index")
def main() -> None:
    """Build and search an index of embeddings."""


main.add_command(push)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("modality")
@click.argument("items", nargs=-1)
@input_options
@option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The index's folder, new or empty.")
@k_option("Register tokens to compute.  [default: all]")
@kind_option(
    SEARCHED_KINDS,
    "Kind of vectors to keep. tokens: the first finds candidates, all overlapping ones put them in order. "
    "complementary: what only MODALITY knows, searched from it alone.",
)
@dimensions_option
@dtype_option
@bad_item_options()
@serving_options
@debug_option
@sentence_errors
def build(
    bundle: Path,
    modality: str,
    items: tuple[str, ...],
    input_file: str | None,
    column: str | None,
    id_column: str | None,
    skip_empty: bool,
    output: Path,
    k: int | None,
    kind: str,
    dimensions: int | None,
    dtype: str,
    on_bad_item: str,
    bad_items_limit: float,
    batch_size: int,
    backend_options: BackendOptions,
) -> None:
    """Embed ITEMS (texts, or paths of files or folders) of MODALITY with BUNDLE into an index.

    Texts get the bundle's prompt for documents, if it has one; `search` gives its query the one for queries. If the
    command is interrupted, the same command goes on where it stopped.

    fluxtalk index build BUNDLE image photos/ -o photos.index
    """
    policy = BadItemPolicy(on_bad_item, bad_items_limit)
    require_free(output, IndexFileError)
    with open_embedder(bundle, backend_options) as embedder:
        kind_of_items, pass_on = embedder.input_kind(modality), policy.action == SKIP
        listed = None if input_file is None else stored_path(input_file)
        opened = open_input(kind_of_items, modality, items, listed, column, id_column, skip_empty, pass_on)
        for note in opened.notes():
            click.echo(f"warning: {note}", err=True)
        if isinstance(opened, TableColumn) and isinstance(opened.path, Path) and opened.kind != "text":
            for note in outside_notes(opened.path, (item.value for item in opened if isinstance(item.value, str))):
                click.echo(f"note: {note}", err=True)
        spec = IndexSpec.of(embedder.bundle, modality, kind, k, dtype, dimensions)
        options = EmbedOptions(modality, k, kind, batch_size=batch_size, role=DOCUMENT, dimensions=dimensions)
        embedded = embed_in_parts(embedder, opened, output, options, opened.count(), policy=policy)
        chunks = embedded.vectors()
        if kind == TOKENS:
            shared = embedder.bundle.manifest.layout.select(k, kind).shared
            chunks = (chunk[:, :shared] for chunk in chunks)
        if kind == COMPLEMENTARY:
            chunks = (side_by_side(chunk) for chunk in chunks)
        queries = golden_queries(embedder.bundle, spec)
        manifest = build_index(output, chunks, embedded.ids(), spec, len(embedded.bad), queries)
        embedded.parts.remove()
    click.echo(
        f"{output}: {manifest.items} {modality} items, {manifest.output}, k = {manifest.k}, dimension {manifest.dim}, "
        f"{manifest.bytes_per_item} bytes each in {dtype}{told(manifest.left_out, output)}"
    )
    if manifest.ef_search:
        click.echo(
            f"with ef_search {manifest.ef_search} its graph finds {100 * manifest.graph_recall:.0f} % of the nearest "
            "ten of the bundle's golden items"
        )


_LIMITS = "Choose k from the curve that the export measured"


@main.command(cls=GroupedCommand)
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("modality")
@click.argument("query")
@option("-n", "--count", default=10, show_default=True, type=click.IntRange(1), help="Number of answers.")
@k_option("Register tokens of the query.  [default: the index's]")
@option("--item-k", type=int, help="Register tokens to read of each item.  [default: all that are stored]")
@option(
    "--min-recall",
    type=click.FloatRange(0, 1),
    group=_LIMITS,
    help="Smallest share of the full recall, such as 0.95: the fewest bytes that keep it.",
)
@option("--max-bytes", type=click.IntRange(1), group=_LIMITS, help="Most bytes of an item that are read.")
@option(
    "--deadline-ms",
    type=click.FloatRange(0, min_open=True),
    group=_LIMITS,
    help="Most milliseconds of the query in the session, as the export timed it.",
)
@option(
    "--candidates",
    type=click.IntRange(1),
    help="Items of an index of tokens that are put in order.  [default: ten for each answer, at least 100]",
)
@option(
    "--bundle", type=click.Path(path_type=Path), help="Folder of the bundle, if it was moved; or another of its run."
)
@backend_options
@debug_option
@sentence_errors
def search(
    index: Path,
    modality: str,
    query: str,
    count: int,
    k: int | None,
    item_k: int | None,
    min_recall: float | None,
    max_bytes: int | None,
    deadline_ms: float | None,
    candidates: int | None,
    bundle: Path | None,
    backend_options: BackendOptions,
) -> None:
    """Find the items most similar to QUERY, a text or a path, of MODALITY.

    A text gets the bundle's prompt for queries, if it has one. The query and the items may have a k of their own.

    fluxtalk index search photos.index text "a dog on a beach"

    fluxtalk index search photos.index text "a dog on a beach" -k 1 --item-k 8
    """
    opened, limits = SearchIndex(index), Limits(min_recall, max_bytes, deadline_ms)
    with open_embedder(bundle or opened.stored.bundle, backend_options, [modality]) as embedder:
        if item_k is not None or limits.given:
            chosen = opened.compare(embedder, modality, k, item_k, limits)
            click.echo(
                f"k = {chosen.query.k} for the query, item_k = {chosen.item_k}: "
                f"{opened.bytes_per_item(chosen)} bytes of each item",
                err=True,
            )
        found = opened.search_items(embedder, modality, [query], count, k, candidates, item_k, limits)
    for hit in found[0]:
        click.echo(f"{hit.similarity:7.4f}  {hit.item}")
